from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from pytorch_lightning import Trainer

from datamodules import CourseStream
from datamodules.course import CourseOrder, CourseSampler
from tests.conftest import IMAGES


def test_the_first_pass_is_in_file_order_and_the_rest_is_dropped() -> None:
    sampler = CourseSampler(10, seed=0)
    passes = [sampler.next_batch(4) for _ in range(4)]
    assert np.concatenate(passes[:2]).tolist() == list(range(8))
    second = np.concatenate(passes[2:])
    expected = np.random.RandomState(0).permutation(10)
    assert second.tolist() == expected[:8].tolist()


def test_a_new_order_is_made_from_the_last_one() -> None:
    sampler, random = CourseSampler(4, seed=7), np.random.RandomState(7)
    images = np.arange(4)
    for _ in range(3):
        assert sampler.next_batch(4).tolist() == images.tolist()
        shuffled = np.arange(4)
        random.shuffle(shuffled)
        images = images[shuffled]


def test_more_than_all_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 5 out of 4 images"):
        CourseSampler(4, seed=0).next_batch(5)


@pytest.fixture(scope="module")
def author() -> CourseOrder:
    """What the report's script drew: its settings, its seed."""
    return CourseOrder.draw(50_000, batch_size=32, steps=5000, every=500, seed=42)


def test_the_author_evaluated_on_images_he_had_trained_on(author: CourseOrder) -> None:
    # Shares from the audit of the author's script, of evaluations 1, 2, 3, 5, 7 and 10.
    shares = [author.seen()[i] for i in (0, 1, 2, 4, 6, 9)]
    assert shares == pytest.approx([0, 0.129, 0.645, 0.874, 0.953, 0.994], abs=5e-4)


def test_the_author_never_trained_on_some_images(author: CourseOrder) -> None:
    counts = np.bincount(author.trained.ravel(), minlength=50_000)
    assert (counts == 0).sum() == 285
    assert counts[author.evaluated[-1]].mean() == pytest.approx(3.2, abs=0.05)


@pytest.fixture
def stream(data_dir: Path) -> CourseStream:
    data = CourseStream(
        data_dir=str(data_dir),
        source="synthetic",
        synthetic_images=IMAGES,
        batch_size=8,
        val_size=0,
        seed=3,
    )
    strategy = SimpleNamespace(root_device="cpu")
    trainer = SimpleNamespace(
        max_steps=20, val_check_interval=10, world_size=1, global_step=0, strategy=strategy
    )
    data.setup()
    data.trainer = cast(Trainer, trainer)
    return data


def test_batches_follow_the_order(stream: CourseStream) -> None:
    order = CourseOrder.draw(5 * IMAGES, batch_size=8, steps=20, every=10, seed=3)
    batches = list(stream.train_dataloader())
    assert len(batches) == len(stream.train_dataloader()) == 20
    for (images, labels), indices in zip(batches, order.trained, strict=True):
        assert (images.numpy() == stream.train_set.images[indices]).all()
        assert (labels.numpy() == stream.train_set.labels[indices]).all()


@pytest.mark.parametrize(("step", "evaluation"), [(10, 0), (20, 1), (0, 1)])
def test_an_evaluation_takes_the_images_of_its_step(
    stream: CourseStream, step: int, evaluation: int
) -> None:
    assert stream.trainer is not None
    stream.trainer.global_step = step  # type: ignore[misc]
    order = CourseOrder.draw(5 * IMAGES, batch_size=8, steps=20, every=10, seed=3)
    labels = np.concatenate([batch[1].numpy() for batch in stream.val_dataloader()])
    assert (labels == stream.train_set.labels[order.evaluated[evaluation]]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_size": 100}, "set data.val_size to 0, got 100"),
        ({"val_size": 0, "crop": 4}, "does not augment"),
    ],
)
def test_what_the_course_does_not_have_is_an_error(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CourseStream(**wrong)


def test_an_interval_of_epochs_is_an_error(stream: CourseStream) -> None:
    stream.trainer.val_check_interval = 0.5  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"must be in steps, got 0\.5"):
        stream.order()
