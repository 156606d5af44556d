"""Values leave an image and come back with its meta, affine and type."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from monai_vqgen.transforms.tensors import affine_of, name_of, to_numpy, with_values

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def test_values_are_views_where_possible():
    for image in (torch.zeros(2, 3), MetaTensor(torch.zeros(2, 3)), np.zeros((2, 3), dtype=np.float32)):
        to_numpy(image)[0, 0] = 7
        assert float(image[0, 0]) == 7
    assert type(to_numpy(MetaTensor(torch.zeros(2)))) is np.ndarray


def test_affine_and_name_have_defaults():
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.as_tensor(AFFINE), meta={"filename_or_obj": "a.nii"})
    np.testing.assert_array_equal(affine_of(image), AFFINE)
    np.testing.assert_array_equal(affine_of(torch.zeros(1)), np.eye(4))
    assert [name_of(image), name_of(torch.zeros(1))] == ["a.nii", "the image"]


def test_new_values_keep_what_the_image_knows():
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.as_tensor(AFFINE), meta={"subject": "sub-01"})
    result = with_values(np.ones((1, 2, 2, 2)), image)
    assert isinstance(result, MetaTensor)
    assert result.meta["subject"] == "sub-01"
    np.testing.assert_array_equal(affine_of(result), AFFINE)
    assert not isinstance(with_values(np.ones(3), torch.zeros(3)), MetaTensor)
