"""The data gate: readers of COCO, VOC and YOLO, the rules that annotations must keep, findings and
their gallery.
"""
