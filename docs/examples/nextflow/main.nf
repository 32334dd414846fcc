// Predicts every slide of a list by a run of virchow_st, one job per slide.
//
//   nextflow run main.nf --run run --slides slides.csv --outdir results [-profile slurm] [-resume]
//
// slides.csv has the columns image, and where they are known mpp and patient. Each job writes
// results/NAME.zarr, a picture of the tissue, and results/features/NAME.h5.

params.run = 'run'
params.slides = 'slides.csv'
params.outdir = 'results'
params.min_tissue = 0.5

process PREDICT {
    tag "${image.simpleName}"
    label 'gpu'
    publishDir params.outdir, mode: 'copy'
    errorStrategy { task.attempt <= 3 ? 'retry' : 'ignore' } // a broken slide stops no other

    input:
    tuple path(image), val(mpp)
    path run

    output:
    path "${image.simpleName}.zarr"
    path "${image.simpleName}_tissue.png"
    path "features/*.h5"

    script:
    """
    export OMP_NUM_THREADS=${task.cpus} NUMBA_NUM_THREADS=${task.cpus}
    vst predict ${run} ${image} --out ${image.simpleName}.zarr --mpp ${mpp} \\
        --min-tissue ${params.min_tissue} --features features --quiet
    """
}

workflow {
    slides = Channel.fromPath(params.slides)
        .splitCsv(header: true)
        .map { row -> tuple(file(row.image, checkIfExists: true), row.mpp ?: 0) }
    PREDICT(slides, file(params.run, checkIfExists: true))
}
