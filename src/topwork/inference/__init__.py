"""Running a detector: the device, prediction over a data set, pictures with boxes, latency."""
