"""torchrun beside Ray: the rates and starts that the table shows, for programs whose times are known."""

import pytest

from sca_caption.benchmarks import cluster


def test_the_table_separates_rates_from_starts(monkeypatch, photos, capsys):
    ran = []

    def seconds(command: list[str], paths: list, checkpoint: str | None) -> float:
        ran.append((command[1] == cluster.RAY, len(paths)))
        start, rate = (9, 4) if command[1] == cluster.RAY else (2, 5)
        return start + len(paths) / rate

    monkeypatch.setattr(cluster, "seconds", seconds)
    assert cluster.main([str(photos[0].parent), "--few", "1", "--rounds", "2"]) == 0
    assert ran == 2 * [(False, 2), (False, 7), (True, 2), (True, 7)], "in turn, few photographs and then all"
    rows = [line.strip("| ").split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [["5.00", "1.00", "2.0"], ["4.00", "0.80", "9.0"]]


@pytest.mark.parametrize(("images", "size"), [(7, 16), (60, 16), (1600, 100)])
def test_every_process_of_ray_gets_several_shards_of_a_batch_or_more(images, size):
    command = cluster.with_ray(2, images)
    assert command[command.index("--shard-size") + 1] == str(size)


def test_too_few_photographs_and_failing_programs_take_one_line(photos, capsys):
    for flags, found in [(["--few", "9"], "--few"), (["--few", "1", "--checkpoint", "gone.pt"], "failed")]:
        assert cluster.main([str(photos[0].parent), *flags]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and found in err
