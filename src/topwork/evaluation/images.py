"""How well a detector does on each image: what picks the pictures of the report and of a
comparison.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from topwork.evaluation.assessment import Assessments
from topwork.metrics.curves import f1_score
from topwork.metrics.matching import Matches


def image_f1(matches: Matches, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 of each image at the matches' first IoU threshold, over all classes; crowds, and
    detections that a crowd took, don't count.

    Args:
        matches: the matches of one set of predictions.
        kept: bool[D], the detections that count: those that reach their class's threshold, say.

    Returns:
        float64[I], in the order of `truth.image_ids`; 1 for an image with neither objects nor
        detections.
    """
    truth = matches.truth

    def by_image(image: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(image, minlength=len(truth.image_ids))

    return f1_score(
        by_image(matches.image[kept & matches.true[0]]),
        by_image(matches.image[kept & ~matches.ignored[0]]),
        by_image(truth.image[~truth.crowd]),
    )


def image_scores(assessments: Assessments) -> pd.DataFrame:
    """F1 of each image at IoU 0.5, with detections from their class's best threshold.

    Returns:
        set, model, image_id, f1: a row an image, model and set.
    """
    tables = [
        pd.DataFrame(
            {
                "set": split,
                "model": model,
                "image_id": assessment.truth.image_ids,
                "f1": image_f1(assessment.matches, assessment.confident),
            }
        )
        for split, models in assessments.items()
        for model, assessment in models.items()
    ]
    return pd.concat(tables, ignore_index=True)
