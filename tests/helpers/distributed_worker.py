"""What a process does that test_distributed*.py starts with torchrun: `parity DATA PICTURES OUT`, or `PROGRAM FLAG...`.

PROGRAM is train, evaluate or caption, with the toy CNN among the backbones. BLOW in the environment strikes the second
process at the start of its second epoch, or at its second image, in torchrun's first attempt: "kill" or "mistake".
"""

import dataclasses
import importlib
import os
import signal
import sys
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file

from sca_caption.config import ClassifierConfig, ClassifierTrainConfig
from sca_caption.datasets.classification import open_dataset
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.decoding import sampling
from sca_caption.evaluation import meteor_spice as java_metrics
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models import backbone as backbones
from sca_caption.models import pretrained
from sca_caption.models.classifier import Classifier
from sca_caption.runtime.distributed import Processes, process_group
from sca_caption.runtime.errors import UserError
from sca_caption.training import loop
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.classification_task import ClassificationTask
from sca_caption.training.loop import TaskLoss
from tests.helpers.toy_backbone import Toy
from tests.helpers.training_runs import QUICK, captioner, run

# Seven training images: three steps an epoch, the last of one image, which leaves one of two processes without any.
CAPTIONS = dataclasses.replace(
    QUICK, finetune_backbone_at=1, label_smoothing=0.1, attention_penalty=0.5, optimizer="sgd", ema=0.5
)
WORDS = dataclasses.replace(CAPTIONS, word_loss_weight=0.5)  # with a predictor of words
CIDER = dataclasses.replace(CAPTIONS, objective="cider", train_sample_n=3)
CLASSES = ClassifierTrainConfig(epochs=2, batch_size=5, workers=0, lr=0.01, views="pad", label_smoothing=0.1)


def sample_each(model, state, draw=sampling.sample, **rules):
    """`sampling.sample`, where the samples of an image do not depend on the other images of the batch."""
    found = []
    for rows in torch.arange(len(state)).split(CIDER.train_sample_n):
        torch.manual_seed(0)
        found.append(draw(model, state.select(rows), **rules))
    return sampling.Sampled(
        list(chain.from_iterable(each.tokens for each in found)),
        list(chain.from_iterable(each.finished for each in found)),
        torch.cat([each.log_prob for each in found]),
        torch.cat([each.likelihood for each in found]),
    )


def classifier(data) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(backbone="lenet", attention="se", image_size=32, classes=data.classes))


def gradients(data: CaptionDataset, pictures: Path, processes: Processes) -> dict[str, torch.Tensor]:
    """Gradients of all parameters at every step of two epochs, by task; the CNN learns in the second epoch."""
    sampling.sample, classes = sample_each, open_dataset("folder", pictures)
    words = {"dropout": 0.0, "word_rank": 4, "word_dropout_rate": 0.0}
    tasks = {
        "cross-entropy": CaptionTask(captioner(data, dropout=0.0), data, CAPTIONS, processes),
        "words": CaptionTask(captioner(data, **words), data, WORDS, processes),
        "cider": CaptionTask(captioner(data, dropout=0.0), data, CIDER, processes),
        "classes": ClassificationTask(classifier(classes), classes, CLASSES, {}, processes),
    }
    found = {}
    for name, task in tasks.items():
        for epoch in range(2):
            task.start_epoch(epoch)
            step = processes.data_parallel(TaskLoss(task))
            for i, batch in enumerate(task.batches(epoch)):
                task.model.zero_grad()
                step(batch)[0].backward()
                for parameter, value in task.model.named_parameters():
                    if value.grad is not None:
                        found[f"{name}.{epoch}.{i}.{parameter}"] = value.grad.clone(
                            memory_format=torch.contiguous_format
                        )
    return found


def parity(data: Path, pictures: Path, output: Path, processes: Processes) -> None:
    found = gradients(CaptionDataset(data), pictures, processes)
    if processes.is_main:
        save_file(found, output / "gradients.safetensors")
    run(CaptionDataset(data), output, CAPTIONS, processes=processes, dropout=0.0)


def no_java():
    raise java_metrics.MetricUnavailable("no Java here")


def blow(kind: str) -> None:
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("one process stumbled; mend it")


def prepare_blow(kind: str) -> None:
    start_epoch, caption_batch, calls = CaptionTask.start_epoch, CaptionPipeline.caption_batch, []

    def started(self, epoch):
        if epoch == 1:
            blow(kind)
        start_epoch(self, epoch)

    def captioned(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            blow(kind)
        return caption_batch(self, batch)

    CaptionTask.start_epoch, CaptionPipeline.caption_batch = started, captioned


def main(program: str, *arguments: str) -> int:
    torch.set_num_threads(1)
    build, names = backbones._build, pretrained.backbone_names
    backbones._build = lambda name: Toy() if name == "toy" else build(name)
    pretrained.backbone_names = lambda: ["toy", *names()]
    loop.summary_writer = lambda output: None  # its import takes longer than the tests
    java_metrics.find_java = no_java
    if "BLOW" in os.environ:
        prepare_blow(os.environ["BLOW"])
    if program == "parity":
        with process_group() as processes:
            parity(*map(Path, arguments), processes)
        return 0
    return importlib.import_module(f"sca_caption.cli.{program}").main(list(arguments))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
