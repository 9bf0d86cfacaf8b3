"""Loss, training step and inference of a network's twin in idiomatic PyTorch.

Weights, batches, losses and optimiser are those of ours. Slices are the data loader's uint8 ``[b h w 1]``, whose NCHW
view is torch's channels_last. bfloat16 is autocast's, and on GPUs float32 may use TF32, as in JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch._dynamo
from flax import nnx
from numpy.typing import NDArray
from pytorch_msssim import SSIM
from torch import Tensor, nn
from torch.nn import functional

from dagm_jax.config import RunConfig
from dagm_jax.evaluation.postprocess import gaussian, reflected
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.models.network import Network
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.optim import OptimConfig
from dagm_jax.types import NetworkOutput
from launch import peer
from launch.bench.peer_data import Example
from launch.bench.session import check_task
from launch.bench.timing import Run, repeat

Step = Callable[[Example], Tensor]
F = TypeVar("F", bound=Callable[..., Any])
DICE_SMOOTHING = IOU_SMOOTHING = 1.0
# Share of a slice's pixels that Dice adds where the target is empty.
EMPTY_SHARE = 0.001
FOCAL_GAMMA = 2.0


def pixel_loss(task: SegmentationConfig, logits: Tensor, targets: Tensor, ssim: SSIM) -> Tensor:
    """Weighted sum of one output's loss terms, each a mean over the batch; NCHW, float32."""
    p = torch.sigmoid(logits)
    loss = logits.new_zeros(())
    dims = (1, 2, 3)
    if task.bce_weight or task.focal_weight:
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if task.bce_weight:
        loss = loss + task.bce_weight * cross_entropy.mean()
    if task.focal_weight:
        wrong = torch.sigmoid((1 - 2 * targets) * logits)
        loss = loss + task.focal_weight * (wrong**FOCAL_GAMMA * cross_entropy).mean()
    if task.ssim_weight:
        loss = loss + task.ssim_weight * (1 - ssim(p, targets))
    if task.dice_weight or task.iou_weight:
        overlap, total = (p * targets).sum(dims), p.sum(dims) + targets.sum(dims)
        empty = max(EMPTY_SHARE * targets[0].numel(), DICE_SMOOTHING)
        smoothing = torch.where(targets.amax(dims) > 0, DICE_SMOOTHING, empty)
        dice = 1 - (2 * overlap + smoothing) / (total + smoothing)
        iou = 1 - (overlap + IOU_SMOOTHING) / (total - overlap + IOU_SMOOTHING)
        loss = loss + task.dice_weight * dice.mean() + task.iou_weight * iou.mean()
    return loss


def batch_loss(
    task: SegmentationConfig, output: NetworkOutput, targets: Tensor, label: Tensor, ssim: SSIM
) -> Tensor:
    """Mean of all outputs' losses, plus the guided module's cross-entropy on slices that have a label."""
    outputs = (output.logits, *output.side_logits)
    losses = [pixel_loss(task, logits, targets, ssim) for logits in outputs]
    loss = sum(losses, targets.new_zeros(())) / len(outputs)
    if output.class_logits is not None:
        classes = functional.cross_entropy(output.class_logits, label.clamp(min=0).long(), reduction="none")
        loss = loss + task.class_weight * torch.where(label >= 0, classes, 0.0).mean()
    return loss


@dataclass(frozen=True)
class Twin:
    """A network's twin on its device with our initial weights, and the standardisation of its input."""

    module: nn.Module
    task: SegmentationConfig
    optim: OptimConfig
    in_channels: int
    mean: float
    std: float
    downscale: int
    device: torch.device
    ssim: SSIM

    def preprocess(self, image: Tensor) -> Tensor:
        """Standardised slices ``[b c h w]``, channels_last."""
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        x = x.expand(-1, self.in_channels, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> NetworkOutput:
        """The network's output for slices, which it sees as small as ours."""
        x = self.preprocess(image)
        if self.downscale == 1:
            return self.module(x)  # type: ignore[no-any-return]
        output = self.module(functional.avg_pool2d(x, self.downscale))
        logits, *side_logits = (
            functional.interpolate(z, scale_factor=self.downscale, mode="bilinear")
            for z in (output.logits, *output.side_logits)
        )
        return NetworkOutput(logits, tuple(side_logits), output.class_logits)

    def loss(self, image: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch on the device."""
        targets = mask.permute(0, 3, 1, 2).float()
        return batch_loss(self.task, self.forward(image), targets, label, self.ssim)

    def predict(self, image: Tensor) -> Tensor:
        """Defect probabilities ``[b 1 h w]``, gated where the network guides itself."""
        output = self.forward(image)
        maps: Tensor = torch.sigmoid(output.logits)
        if output.class_logits is None:
            return maps
        return maps * torch.softmax(output.class_logits, dim=1)[:, 1, None, None, None]

    def place(self, example: Example) -> Example:
        """A batch on the device."""
        image, mask, label = (part.to(self.device, non_blocking=True) for part in example)
        return image, mask, label

    def synchronize(self, result: Any = None) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def make_twin(config: RunConfig, network: Network, params: Any, stats: Any) -> Twin:
    """The twin of our network with these weights, on PyTorch's GPU if there is one, else on the CPU."""
    task = check_task(config)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = peer.build(config.model, in_channels=config.in_channels, out_channels=1)
    peer.copy_weights(nnx.merge(network.graphdef, params, stats), module)
    module.to(place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    ssim = SSIM(data_range=1.0, channel=1)
    # A window made at each call would be one that the device waits for.
    ssim.win = ssim.win.to(place)
    # The spread is 0 where all training images have one grey level.
    mean, std = network.mean, network.std or 1.0
    downscale = config.slicing.downscale
    return Twin(module, task, config.optim, config.in_channels, mean, std, downscale, place, ssim)


def compile_anew(function: F) -> F:
    """``function`` compiled for each shape on its own, as if nothing had been compiled in this process before.

    Past torch's limit of recompilations the call raises, where torch would run eagerly.
    """
    # Compiled programs are kept per code object, which all twins share: other cells would use the limit up.
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return cast(F, torch.compile(function, dynamic=False))


def make_adamw_step(twin: Twin, compiled: bool) -> Step:
    """``step(batch) -> loss`` with our optimiser's decay, clip and warm-up; ``compiled``: its loss by torch.compile."""
    module, optim = twin.module.train(), twin.optim
    parameters = list(module.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == decays] for decays in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True)
    loss_of = compile_anew(twin.loss) if compiled else twin.loss
    taken = 0

    def step(example: Example) -> Tensor:
        nonlocal taken
        taken += 1
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * min(1.0, taken / (optim.warmup_steps + 1))
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*twin.place(example))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def as_examples(batches: Sequence[Any]) -> list[Example]:
    """Our host batches as torch tensors."""
    return [
        tuple(torch.from_numpy(np.array(batch[name])) for name in ("image", "mask", "label"))  # type: ignore[misc]
        for batch in batches
    ]


def run_steps(twin: Twin, step: Step, batches: Sequence[Any]) -> Run:
    """Steps on batches that are on the device already."""
    return run_training(twin, step, cycle([twin.place(example) for example in as_examples(batches)]))


def run_training(twin: Twin, step: Step, examples: Iterator[Example]) -> Run:
    """Steps on batches as they come."""
    return repeat(lambda: step(next(examples)), twin.synchronize)


def make_predict(twin: Twin, compiled: bool) -> Callable[[Tensor], Tensor]:
    """``predict(image on the device) -> maps``, in evaluation mode."""
    twin.module.eval()
    return torch.inference_mode()(compile_anew(twin.predict) if compiled else twin.predict)  # type: ignore[no-any-return]


def make_judge(model: TrainedModel, compiled: bool) -> Callable[..., NDArray[np.float32]]:
    """``judge(image uint8 [_ _], height, width)``: the map float32 of the upper left of a padded image.

    The trained segmentation's map is cropped, smoothed and scored as in `dagm_jax.evaluation.postprocess`, and decision
    and mask are computed too.
    """
    verdict = model.config.verdict
    twin = make_twin(model.config, model.network, model.params, model.stats)
    twin.module.eval()
    weights = torch.from_numpy(gaussian(verdict.smoothing_px)).to(twin.device)

    def postprocess(image: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        map_ = twin.predict(image)[..., :height, :width]
        radius = len(weights) // 2
        for dim, kernel in ((2, weights[None, None, :, None]), (3, weights[None, None, None])):
            place = torch.arange(-radius, map_.shape[dim] + radius, device=map_.device)
            map_ = functional.conv2d(map_.index_select(dim, reflected(place, map_.shape[dim])), kernel)
        map_ = map_.clamp(0, 1)
        pixels = map_.flatten()
        num_top = 1 if verdict.score == "max" else max(1, round(verdict.top_fraction * len(pixels)))
        score = pixels.topk(num_top).values.mean()
        return score, score >= model.rule.threshold, map_, map_ >= model.rule.pixel_threshold

    call = torch.inference_mode()(compile_anew(postprocess) if compiled else postprocess)

    def judge(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
        outputs = call(torch.from_numpy(image[None, ..., None]).to(twin.device), height, width)
        _, _, map_, _ = [output.cpu() for output in outputs]
        return map_[0, 0].numpy()  # type: ignore[no-any-return]

    return judge
