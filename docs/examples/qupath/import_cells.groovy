// Imports the cells that `vst cells ... --out P1_cells.geojson` wrote, and colours them.
// In QuPath: open the slide, Automate > Script editor, set the two names below, Run.

import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper

def file = "/path/to/P1_cells.geojson"
def measurement = "Expected UMIs"      // any name in the table of measurements, such as "PIGR: expected UMIs"

importObjectsFromFile(file)

def cells = getDetectionObjects().findAll { it.getMeasurementList().containsKey(measurement) }
if (cells.isEmpty()) {
    println "No cell has the measurement '" + measurement + "'; see Measure > Show detection measurements"
    return
}

// Colours span the 1st to the 99th percentile, so that one bright cell does not darken the rest.
def values = cells.collect { it.getMeasurementList().get(measurement) }.sort()
def mapper = new MeasurementMapper(ColorMaps.getDefaultColorMap(), measurement, cells)
mapper.setDisplayMinValue(values[(int) (0.01 * (values.size() - 1))])
mapper.setDisplayMaxValue(values[(int) (0.99 * (values.size() - 1))])

def options = getCurrentViewer().getOverlayOptions()
options.setFillDetections(true)
options.setMeasurementMapper(mapper)
println cells.size() + " cells coloured by " + measurement
