"""The data as every stage reads them: tables of images, annotations and categories, and the store
that opens an image.
"""
