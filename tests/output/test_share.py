"""A shared run predicts the same, contains no name or path, and is complete or refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hub_double import Hub, running_hub

from virchow_st.errors import ConfigError
from virchow_st.output.share import fetch_run, push_run, save_run
from virchow_st.output.share.gene_scores import gene_section, share_of_ceiling
from virchow_st.output.share.listing import CARD, FILES, LISTING
from virchow_st.output.share.terms import sharing_terms
from virchow_st.predict.load import Run, load_run
from virchow_st.run.results import read_per_gene
from virchow_st.store.reader import open_store

PATIENTS = ("P1", "P2", "P5")


@pytest.fixture(scope="module")
def shared(stain_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "model"
    save_run(stain_run, out)
    return out


@pytest.fixture
def copied(shared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The real client of the Hub, which finds its double in the Hub's place."""
    from huggingface_hub import constants

    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        pages = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pages)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_double")
        yield hub


def names_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def check_same_rates(run: Path, other: Run, store: Path) -> None:
    patch = open_store(store)[0]
    expected = load_run(run, "cpu").predict(patch)
    assert expected.any()
    np.testing.assert_array_equal(other.predict(patch), expected)


# --- the folder ---------------------------------------------------------------------------------


def test_a_shared_run_predicts_the_same(stain_run, shared, stores) -> None:
    check_same_rates(stain_run, Run.from_pretrained(shared, device="cpu"), stores["P5"])
    check_same_rates(stain_run, load_run(shared, "cpu"), stores["P5"])


def test_it_holds_what_it_lists_and_no_pickle(shared) -> None:
    listed = json.loads((shared / LISTING).read_text())["files"]
    assert set(listed) == set(FILES) - {"genes.tsv"}
    assert names_in(shared) == {*listed, LISTING, CARD}


def test_no_patient_and_no_path_is_told(stain_run, shared, stores) -> None:
    assert "P5" in (stain_run / "config.toml").read_text(), "the test would find it"
    for name in names_in(shared):
        data = (shared / name).read_bytes()
        for told in (*PATIENTS, str(stain_run.parent), *map(str, stores.values())):
            if len(told) > 2 or (name != CARD and not name.endswith(".safetensors")):
                assert f'"{told}"'.encode() not in data, (name, told)
            if len(told) > 2:
                assert told.encode() not in data, (name, told)
    config = tomllib.loads((shared / "config.toml").read_text())
    assert config["stores"] == ["patient-1.vst", "patient-2.vst", "patient-3.vst"]
    assert config["test_patient"] == "patient-3"
    assert json.loads((shared / "metrics.json").read_text())["test_patients"] == ["patient-3"]


def test_names_stay_where_asked(stain_run, tmp_path) -> None:
    save_run(stain_run, tmp_path / "model", keep_names=True)
    config = tomllib.loads((tmp_path / "model/config.toml").read_text())
    assert (config["test_patient"], config["stores"][0]) == ("P5", "P1.vst")
    Run.from_pretrained(tmp_path / "model", device="cpu")


def test_a_patient_with_two_slides(evaluated_run, tmp_path) -> None:
    """Scores of each slide go by the new names, in their places."""
    save_run(evaluated_run, tmp_path / "model", license="mit")
    before = json.loads((evaluated_run / "metrics.json").read_text())["slides"]
    after = json.loads((tmp_path / "model/metrics.json").read_text())["slides"]
    assert list(before) == ["T-1", "T-2"]
    assert after == {f"patient-2-{name[-1]}": scores for name, scores in before.items()}


def test_a_run_that_was_not_evaluated(stain_run, tmp_path) -> None:
    bare = shutil.copytree(stain_run, tmp_path / "run")
    (bare / "metrics.json").unlink()
    save_run(bare, tmp_path / "model")
    assert not names_in(tmp_path / "model") & {"metrics.json", "per_gene.csv"}
    card = (tmp_path / "model" / CARD).read_text()
    assert "was not evaluated" in card
    assert "Scores on the held-out" not in card
    Run.from_pretrained(tmp_path / "model", device="cpu")


def test_shared_again_it_is_the_same(shared, tmp_path) -> None:
    Run.from_pretrained(shared, device="cpu").save_pretrained(tmp_path / "model")
    for name in names_in(shared) - {CARD}:
        assert (tmp_path / "model" / name).read_bytes() == (shared / name).read_bytes(), name


def test_scores_of_another_epoch_are_refused(stain_run, tmp_path) -> None:
    run = shutil.copytree(stain_run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "epoch": metrics["epoch"] + 1}))
    with pytest.raises(ConfigError, match="run `vst evaluate .* again"):
        save_run(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FILES) - {"genes.tsv"}))
def test_a_tampered_or_missing_file_is_refused(copied, name) -> None:
    file = copied / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{name}: is not the file that was shared"):
        Run.from_pretrained(copied, device="cpu")
    file.unlink()
    with pytest.raises(ConfigError, match=f"{name}: is listed in config.json and is not there"):
        Run.from_pretrained(copied, device="cpu")


def test_a_file_of_another_run_is_refused(copied) -> None:
    shutil.copyfile(copied / "panel.tsv", copied / "genes.tsv")
    with pytest.raises(ConfigError, match=r"genes\.tsv: expected no such file"):
        Run.from_pretrained(copied, device="cpu")


def test_a_list_without_the_weights_is_refused(copied) -> None:
    listing = json.loads((copied / LISTING).read_text())
    del listing["files"]["checkpoints/best/tensors.safetensors"]
    (copied / LISTING).write_text(json.dumps(listing))
    with pytest.raises(ConfigError, match="expected checkpoints/best/tensors.safetensors"):
        Run.from_pretrained(copied, device="cpu")


def test_a_list_that_agrees_does_not_excuse_another_panel(copied) -> None:
    """The checkpoint has hashes of its own."""
    import hashlib

    lines = (copied / "panel.tsv").read_text().splitlines()
    data = "\n".join([lines[0], *reversed(lines[1:])]).encode()
    (copied / "panel.tsv").write_bytes(data)
    listing = json.loads((copied / LISTING).read_text())
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    listing["files"]["panel.tsv"] = found
    (copied / LISTING).write_text(json.dumps(listing))
    with pytest.raises(ConfigError, match=r"panel\.tsv: is not the file that the run was trained"):
        Run.from_pretrained(copied, device="cpu")


# --- licences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "licence",
    [
        "CC-BY-NC-ND 4.0: Virchow2's weights … not to be passed on",
        "cc-by-nc-4.0: see https://huggingface.co/a/b",
        "CC BY-ND 4.0",
        "non-commercial",
    ],
)
def test_a_licence_that_forbids_it_is_final(licence) -> None:
    for chosen in ("", "mit"):
        with pytest.raises(ConfigError, match="forbids to pass on"):
            sharing_terms({"name": "virchow2", "licence": licence}, chosen)


def test_published_encoders() -> None:
    from virchow_st.models.encoders.published import PUBLISHED

    for model in PUBLISHED.values():
        encoder = {"name": model.name or model.repo, "licence": model.licence}
        if model.terms == "Apache 2.0":
            assert sharing_terms(encoder).id == "apache-2.0"
            continue
        with pytest.raises(ConfigError):
            sharing_terms(encoder)


def test_an_unknown_licence_needs_a_choice() -> None:
    for licence in ("", "see https://huggingface.co/a/b", "Apache 2.0 with conditions of use: …"):
        encoder = {"name": "a/b", "licence": licence}
        with pytest.raises(ConfigError, match="--license"):
            sharing_terms(encoder)
        assert sharing_terms(encoder, "CC-BY-4.0").id == "cc-by-4.0"
    terms = sharing_terms(encoder, "https://example.org/Our_Terms")
    assert (terms.id, terms.name) == ("other", "our-terms")
    for wrong in ("my licence", "http://example.org", 'https://x"\nlicense: mit'):
        with pytest.raises(ConfigError, match="license: expected an id"):
            sharing_terms(encoder, wrong)


def test_a_forbidden_run_leaves_nothing(tiny_run, tmp_path, vst) -> None:
    """The tiny run's encoder is for non-commercial use."""
    answer = vst("push", tiny_run, f"{tmp_path}/model", "--license", "mit")
    assert answer.code == 2
    assert "tiny: its licence forbids to pass on models made with it (non-commercial)" in answer.err
    assert list(tmp_path.iterdir()) == []


# --- the card -----------------------------------------------------------------------------------


def header(card: str) -> dict:
    import yaml

    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_the_card_tells_what_the_run_knows(stain_run, shared) -> None:
    card = (shared / CARD).read_text()
    about = header(card)
    assert (about["license"], about["library_name"]) == ("mit", "virchow_st")
    assert about["metrics"] == ["pearsonr"]
    assert "base_model" not in about, "the stain encoder is no model of the Hub"
    metrics = json.loads((stain_run / "metrics.json").read_text())
    for name, label in (("pcc", "this model"), ("pcc_ceiling", "ceiling, given the noise")):
        cells = " | ".join(f"{metrics['scales'][s][name]:.3f}" for s in ("2", "4", "8", "16"))
        assert f"| {label} | {cells}" in card, label
    assert "baseline ridge on tokens" in card
    assert "null: other patches" in card
    for line in (stain_run / "panel.tsv").read_text().splitlines()[1:]:
        assert f"`{line.split()[1]}`" in card
    split = json.loads((stain_run / "split.json").read_text())
    n_train = sum(len(entry["patches"]) for entry in split["train"])
    assert f"| training | 2 | 2 | {n_train} |" in card
    for part in ("How to use it", "Encoder", "What it was not tested on", "How far to trust"):
        assert f"## {part}" in card
    assert "patient-3" in card


def test_genes_are_ranked_by_their_share_of_the_ceiling(shared) -> None:
    scores = [s for s in read_per_gene(shared) if s.scale_um == 8]
    shares = {s.gene.symbol: share_of_ceiling(s) for s in scores}
    section = gene_section(scores)
    ranked = sorted(shares, key=lambda name: -shares[name])
    rows = [line for line in section.splitlines() if "| best |" in line or "| worst |" in line]
    assert [row.split("`")[1] for row in rows] == ranked
    n = sum(share >= 0.5 for share in shares.values())
    assert f"| at least 50% of the ceiling | {n} of {len(shares)} |" in section


def test_another_licence_and_a_base_model_in_the_header(shared, tmp_path) -> None:
    from virchow_st.output.share.card import _header

    terms = sharing_terms({"name": "a/b", "licence": ""}, "https://example.org/terms")
    about = header(_header({"name": "hf-hub:a/b"}, terms, False) + "\n")
    assert about["license"] == "other"
    assert about["license_link"] == "https://example.org/terms"
    assert about["license_name"] == "terms"
    assert about["base_model"] == "a/b"
    assert "metrics" not in about


def test_names_are_no_markup() -> None:
    from virchow_st.output.share.markdown import code, plain_text

    hostile = "a|b`<script>\n# *x*\x1b[1m"
    assert code(hostile) == "`a¦b´<script> # *x*\\x1b[1m`"
    assert plain_text(hostile) == r"a\|b\`&lt;script&gt; \# \*x\*\\x1b\[1m"


def test_a_panel_that_was_a_file_keeps_its_name_alone(stain_run) -> None:
    from dataclasses import replace

    from virchow_st.config import TrainConfig
    from virchow_st.output.share.nameless import _without_paths
    from virchow_st.run.split import read_split
    from virchow_st.settings import from_toml

    split = read_split(stain_run / "split.json")
    names = {patient: patient for patient in PATIENTS}
    config = from_toml(TrainConfig, stain_run / "config.toml")
    for panel, told in (
        ("/home/me/study/genes.txt", "genes.txt"),
        ("all:/home/me/genes.txt", "all:genes.txt"),
        ("all:top:6", "all:top:6"),
        ("all", "all"),
    ):
        assert _without_paths(replace(config, panel=panel), split, names).panel == told


# --- the Hub ------------------------------------------------------------------------------------


def test_pushed_and_loaded_it_predicts_the_same(stain_run, stores, hub: Hub) -> None:
    url = load_run(stain_run, "cpu").push_to_hub("org/model")
    assert url == f"{hub.url}/org/model/commit/{hub.sha('org/model')}"
    assert hub.private == {"org/model": True}
    assert len(hub.commits["org/model"]) == 2, "one commit after that of the empty repository"
    assert hub.sha("org/model") in str(fetch_run("org/model"))
    check_same_rates(stain_run, Run.from_pretrained("org/model", device="cpu"), stores["P5"])
    pinned = load_run(f"hf:org/model@{hub.sha('org/model')}", "cpu")
    check_same_rates(stain_run, pinned, stores["P5"])


def test_a_second_push_leaves_nothing_of_the_first(stain_run, hub: Hub) -> None:
    push_run(stain_run, "org/model", private=False)
    assert hub.private == {"org/model": False}
    tree = hub.commits["org/model"][-1]
    tree |= {"genes.tsv": b"of an earlier run", "picture.png": b"the author's"}
    push_run(stain_run, "org/model")
    tree = hub.commits["org/model"][-1]
    assert "genes.tsv" not in tree
    assert tree["picture.png"] == b"the author's"
    fetch_run("org/model")


def test_a_push_that_fails_leaves_the_repository(stain_run, hub: Hub) -> None:
    push_run(stain_run, "org/model")
    hub.breaks_at = "/commit/"
    with pytest.raises(ConfigError, match="org/model: cannot be written on the Hugging Face Hub"):
        push_run(stain_run, "org/model")
    assert len(hub.commits["org/model"]) == 2


def test_half_a_repository_is_refused(stain_run, hub: Hub) -> None:
    push_run(stain_run, "org/model")
    del hub.commits["org/model"][-1]["split.json"]
    with pytest.raises(ConfigError, match=r"split\.json: is listed in config\.json and is not"):
        load_run("hf:org/model", "cpu")


def test_a_repository_of_something_else_is_refused(hub: Hub) -> None:
    hub.commits["org/other"] = [{"config.json": b'{"model_type": "bert"}'}]
    with pytest.raises(ConfigError, match=r"config\.json"):
        fetch_run("org/other")
    with pytest.raises(ConfigError, match="org/none: cannot be fetched"):
        fetch_run("org/none")


def test_nothing_is_sent_for_a_forbidden_run(tiny_run, hub: Hub) -> None:
    with pytest.raises(ConfigError, match="forbids"):
        push_run(tiny_run, "org/model")
    assert hub.requests == []


# --- the command --------------------------------------------------------------------------------


def test_the_command_writes_a_folder(stain_run, tmp_path, vst) -> None:
    out = tmp_path / "model"
    answer = vst("push", stain_run, out)
    assert (answer.code, answer.out) == (0, f"{out}\n")
    assert (out / LISTING).is_file()
    again = vst("push", stain_run, out)
    assert again.code == 2
    assert "is already there; delete it or give another folder" in again.err
    assert "ORG/NAME" in vst("push", stain_run, "model").err
    assert "no such run" in vst("push", tmp_path / "none", out.with_name("b")).err


def test_the_command_pushes_and_predicts(stain_run, hub: Hub, vst, simulated, tmp_path) -> None:
    answer = vst("push", stain_run, "org/model", "--public", "--license", "cc-by-4.0")
    assert answer.code == 0, answer.err
    assert hub.private == {"org/model": False}
    assert b"license: cc-by-4.0\n" in hub.commits["org/model"][-1][CARD]
    slide, out = simulated / "P5" / "tissue_image.tif", tmp_path / "rates.npz"
    options = ("--out", out, "--format", "npz", "--device", "cpu")
    answer = vst("predict", "hf:org/model", slide, *options)
    assert answer.code == 0, answer.err
    assert out.is_file()
