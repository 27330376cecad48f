"""Numbers about samples: Frechet distance, KID, precision and recall, and nets to take them on.

`report.image_scores` gives them all for two sets of images; the others take features.
"""
