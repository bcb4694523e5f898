"""Data sets: annotation tables, image stores, checks, splits. Reads COCO, Pascal VOC and YOLO; changes none of them."""
