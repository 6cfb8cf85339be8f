"""Captioning from Python: the documented examples, every kind of picture, and errors in the command line's words."""

import doctest
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import sca_caption
from sca_caption import Captioner, ImageError, UserError, api
from sca_caption.config import SearchConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint):
    return Captioner.load(tiny_checkpoint, device="cpu")


@pytest.fixture
def photograph(photos) -> Path:
    noise = np.random.default_rng(3).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos[1])
    return photos[1]  # a PNG: its pixels come back as they are


def test_the_documented_examples_say_what_they_print(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(api, optionflags=doctest.ELLIPSIS)
    assert tried > 5 and not failed


def test_every_kind_of_picture_has_the_same_caption(captioner, photograph):
    image = Image.open(photograph).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = {
        "text": str(photograph),
        "bytes": photograph.read_bytes(),
        "bytearray": bytearray(photograph.read_bytes()),
        "memoryview": memoryview(photograph.read_bytes()),
        "BytesIO": io.BytesIO(photograph.read_bytes()),
        "undecoded PIL": Image.open(photograph),
        "PIL": image,
        "array": array,
        "floats": array / 255,
        "with opacity": np.dstack([array, np.full_like(array[..., :1], 255)]),
        "tensor": tensor,
        "tensor of floats": tensor / 255,
    }
    expected = captioner.caption(photograph)
    assert expected
    assert {name: captioner.caption(picture) for name, picture in kinds.items()} == dict.fromkeys(
        kinds, expected
    )
    assert captioner.caption(kinds.values()) == [expected] * len(kinds)
    with open(photograph, "rb") as file:
        assert captioner.caption(file) == expected and captioner.caption([file, file]) == [expected] * 2
    assert captioner.caption((tensor / 255).bfloat16()) == captioner.caption(
        (tensor / 255).bfloat16().float()
    )
    assert captioner.caption(torch.stack([tensor, tensor])) == [expected] * 2
    assert captioner.caption(np.stack([array, array])) == [expected] * 2
    grey = np.asarray(image.convert("L"))
    assert (
        captioner.caption(grey)
        == captioner.caption(grey[:, :, None])
        == captioner.caption(image.convert("L"))
    )
    assert captioner.caption(torch.from_numpy(grey.copy())[None]) == captioner.caption(grey)


def test_captions_are_the_command_lines(captioner, photos, tiny_checkpoint, capsys):
    from sca_caption.cli import caption

    assert caption.main([*map(str, photos), "--checkpoint", str(tiny_checkpoint), "--beam-size", "3"]) == 0
    printed = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert captioner.caption(photos, beam_size=3) == printed


def test_settings_of_a_call_are_for_that_call(captioner, photograph):
    before = captioner.captions(photograph)
    assert len(before) == 1
    several = captioner.captions(photograph, num_captions=4, beam_size=6, max_length=5, distinct=False)
    assert len(several) == 4 and all(len(each.tokens) <= 5 for each in several)
    assert [each.score for each in several] == sorted((each.score for each in several), reverse=True)
    assert "ball" in captioner.caption(photograph, force_words=["ball"]).split()
    assert captioner.captions(photograph) == before


def test_settings_of_a_call_change_no_others(captioner, photograph):
    other = Captioner(captioner.pipeline.with_search(SearchConfig(beam_size=6, num_captions=3, max_length=4)))
    changed = other.captions(photograph, min_length=3)
    assert len(changed) == 3 and all(3 <= len(each.tokens) <= 4 for each in changed)


def test_a_stream_reports_what_cannot_be_read_and_goes_on(captioner, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    first, second, third = captioner.stream([photos[0], broken, photos[1]])
    assert first.captions and third.captions and not second.captions
    assert "not an image" in str(second.error)
    with pytest.raises(ImageError, match=r"broken\.jpg: not an image"):
        captioner.caption([photos[0], broken])


def test_anything_else_in_a_stream_is_its_own_error(captioner, photos):
    closed = Image.open(photos[0])
    closed.close()
    odd = [
        None,
        3,
        [photos[0]],
        object(),
        closed,
        "",
        "https://example.com/a.jpg",
        torch.zeros(3, 8, 8).to_sparse(),
    ]
    odd += [
        torch.zeros(3, 8, 8, device="meta"),
        np.array(["a.jpg"]),
        np.zeros((4, 4), complex),
        Image.new("RGB", (0, 5)),
    ]
    results = list(captioner.stream([photos[0], *odd, photos[0]]))
    assert [bool(result.error) for result in results] == [False, *[True] * len(odd), False]
    assert results[0].captions == results[-1].captions
    assert all(isinstance(result.error, ImageError) for result in results[1:-1])
    for item in odd:
        if not isinstance(item, list):
            with pytest.raises(ImageError):
                captioner.caption(item)


def pictures(count: int) -> list[Image.Image]:
    """Pictures of noise whose captions differ."""
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8) // (1 + i % 5)) for i in range(count)]


def test_one_object_with_other_content_at_every_step(captioner, tmp_path):
    frames = pictures(40)
    expected = captioner.caption(frames)
    assert len(set(expected)) > 1
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    assert captioner.caption(ImageSequence.Iterator(Image.open(stream))) == expected

    def reused(make, change):
        it = make()
        for frame in frames:
            change(it, frame)
            yield it

    def overwrite(buffer, frame):
        buffer[:] = np.asarray(frame)

    def overwrite_tensor(buffer, frame):
        buffer[:] = torch.from_numpy(np.array(frame)).permute(2, 0, 1)

    def save(path, frame):
        frame.save(path)

    def fill(file, frame):
        file.seek(0)
        file.truncate()
        frame.save(file, "PNG")

    assert captioner.caption(reused(lambda: np.empty((40, 40, 3), np.uint8), overwrite)) == expected
    assert captioner.caption(reused(lambda: torch.empty(3, 40, 40).byte(), overwrite_tensor)) == expected
    assert captioner.caption(reused(lambda: tmp_path / "frame.png", save)) == expected
    assert captioner.caption(reused(io.BytesIO, fill)) == expected


def test_one_undecoded_image_several_times(captioner, tmp_path):
    pictures(1)[0].resize((600, 600)).save(tmp_path / "a.jpg")
    expected = captioner.caption(tmp_path / "a.jpg")
    for _ in range(5):
        image = Image.open(tmp_path / "a.jpg")
        assert captioner.caption([image] * 8) == captioner.caption([image.copy()]) * 8
    assert expected


@pytest.mark.slow
def test_threads_share_a_captioner(captioner):
    shown = pictures(200)
    searches = [{}, {}, {"beam_size": 3}, {"force_words": ["ball"]}]

    def caption(index):
        return captioner.caption(shown[index], **searches[index % 4])

    expected = [caption(index) for index in range(len(shown))]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(caption, range(len(shown)))) == expected


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"the array of shape \(3, 8, 8\) and uint8: .* \(H, W, 3\)"),
        (torch.zeros(8, 8, 3), r"the tensor of shape \(8, 8, 3\) and torch.float32: .* \(3, H, W\)"),
        (np.zeros((0, 8, 3), np.uint8), "not an image"),
        (
            np.full((8, 8, 3), 200.0),
            "not levels of an image; give uint8 from 0 to 255, or floats from 0 to 1",
        ),
        (np.full((8, 8, 3), np.nan), "not levels of an image"),
        (np.zeros((8, 8, 3), np.int64), "not levels of an image"),
    ],
)
def test_arrays_that_are_no_images_are_refused(captioner, values, found):
    with pytest.raises(ImageError, match=found):
        captioner.caption(values)


def test_mistakes_are_said_as_on_the_command_line(captioner, photograph, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Captioner.load(tmp_path / "none.pt")
    with pytest.raises(UserError, match="at most --beam-size 7"):
        captioner.captions(photograph, num_captions=8)
    for wrong, right in {
        "beam_sise": "beam_size",
        "force_word": "force_words",
        "numcaptions": "num_captions",
    }.items():
        with pytest.raises(
            UserError, match=f"unknown keyword '{wrong}'; one of: .*; did you mean {right}\\?"
        ):
            captioner.caption(photograph, **{wrong: 3})
    assert captioner.caption(photograph, force_words="ball") == captioner.caption(
        photograph, force_words=["ball"]
    )


@pytest.mark.slow
def test_the_package_loads_torch_only_for_a_captioner():
    code = "import sca_caption, sys; assert 'torch' not in sys.modules; sca_caption.UserError; sca_caption.Captioner"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Caption0r'"):
        _ = sca_caption.Caption0r
    assert set(api.__all__) == set(sca_caption.__all__)
