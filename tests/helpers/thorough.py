"""Tests that take so long that they run on request only."""

import os

import pytest

THOROUGH = bool(os.environ.get("SCA_CAPTION_THOROUGH"))
thorough = pytest.mark.skipif(not THOROUGH, reason="takes long; set SCA_CAPTION_THOROUGH=1")
