"""Training on procedural scenes: a pool of rendered scenes that is renewed while it is learned from."""

from __future__ import annotations

import copy
import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hashpose_ns.atomic import whole_file, write_whole
from hashpose_ns.errors import HashPoseError, one_line
from hashpose_ns.host import has_native_bfloat16
from hashpose_ns.sparse.evaluation import chance, estimates, held_out_scenes, score
from hashpose_ns.sparse.geometry import balls, exp_map_SO3, pair_rotations
from hashpose_ns.sparse.network import Cameras, SparsePoseNet
from hashpose_ns.sparse.objects import RADIUS
from hashpose_ns.sparse.scenes import Scenes, random_scenes
from hashpose_ns.sparse.settings import POOL_VIEWS, TrainSettings
from hashpose_ns.sparse.weights import read_weights, save_weights
from hashpose_ns.stopping import StopSignals

REFINING = ("refinement.", "to_map.")
"""Parts of the network that the coarse estimate does without."""
CHECKPOINT, LOG, WEIGHTS, SETTINGS = "checkpoint.pt", "log.jsonl", "weights.npz", "settings.json"


def generator_of(device: torch.device, *numbers: int) -> torch.Generator:
    """Random numbers that depend on some integers alone."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 12_345) % (1 << 38)
    return torch.Generator(device).manual_seed(mixed)


class Pool:
    """Rendered scenes. Batch k of them depends on the seed and k alone, so that a resumed run has the same ones."""

    def __init__(self, settings: TrainSettings, step: int, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.batches = max(settings.pool // settings.fresh, 1)
        drawn = [self._batch(k) for k in range(step, step + self.batches)]
        order = sorted(range(self.batches), key=lambda i: (step + i) % self.batches)
        self.scenes = Scenes(**{n: torch.cat([getattr(drawn[i], n) for i in order]) for n in vars(drawn[0])})

    def _batch(self, k: int) -> Scenes:
        settings = self.settings
        family = settings.family if settings.family != "both" else ("articulated", "blobs")[k % 2]
        capture = copy.copy(settings.capture)
        if settings.widen_until > 0:
            part = min(max(k - self.batches, 0) / (settings.widen_until * settings.steps), 1.0)
            capture.azimuth_spread = min(60 + part * 300, capture.azimuth_spread)
        generator = generator_of(self.device, settings.seed, 1, k)
        return random_scenes(family, settings.fresh, POOL_VIEWS, settings.network.size, capture, generator)

    def renew(self, step: int) -> None:
        """After this call the pool is that of the next step."""
        batch, place = self._batch(step + self.batches), (step % self.batches) * self.settings.fresh
        for name, value in vars(self.scenes).items():
            value[place : place + self.settings.fresh] = getattr(batch, name)

    def draw(self, step: int) -> Scenes:
        """Scenes of a step."""
        settings, generator = self.settings, generator_of(self.device, self.settings.seed, 2, step)
        span = settings.most - settings.fewest + 1
        views = settings.fewest + int(torch.randint(span, (), generator=generator, device=self.device))
        count = max(settings.images // views, 1)
        which = torch.randint(len(self.scenes), (count,), generator=generator, device=self.device)
        order = torch.rand(count, POOL_VIEWS, generator=generator, device=self.device).argsort(1)
        return self.scenes.views(which, order[:, :views])


def disturbed(scenes: Scenes, settings: TrainSettings, generator: torch.Generator) -> Cameras:
    """True cameras turned about the object's centre and moved a little; NaN where refinement is to start from the
    coarse estimate."""
    count, views = scenes.tangents.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, device=scenes.tangents.device)

    axes = nn.functional.normalize(balls(count, views, generator, scenes.tangents.device), dim=-1)
    largest = uniform(*settings.disturbed_deg, count, 1, 1)
    rotations = exp_map_SO3(axes * torch.deg2rad(largest * uniform(0.3, 1, count, views, 1))) @ scenes.rotations
    true = scenes.unit_centers
    depth = true[..., 2:] * uniform(0.85, 1.18, count, views, 1)
    shift = uniform(-0.15, 0.15, count, views, 2) * (depth * scenes.tangents[..., None])
    coarse = uniform(0, 1, count) >= settings.disturbed
    rotations = rotations.masked_fill(coarse[:, None, None, None], math.nan)
    return Cameras(rotations, torch.cat([true[..., :2] + shift, depth], -1))


def pose_loss(cameras: Cameras, scenes: Scenes, absolute: float) -> Tensor:
    """Mean absolute error of the entries of turns between all pairs and of the objects' centres, and of rotations from
    the family's frame where there is one."""
    turns = (pair_rotations(cameras.rotations) - pair_rotations(scenes.rotations)).abs().mean()
    centers = (cameras.centers - scenes.unit_centers).abs().mean()
    own = (cameras.rotations - scenes.rotations).abs().mean((1, 2, 3))
    return turns + centers + absolute * (own * scenes.canonical).mean()


def surface_loss(maps: Tensor, scenes: Scenes) -> Tensor:
    """Of the map's first channels: mean distance (sum of absolute differences) of points that are seen, in units of the
    object's radius, and cross entropy of whether there is one. Objects of no family have no points to tell."""
    points = scenes.surface.flatten(0, 1)
    points = nn.functional.avg_pool2d(points, points.shape[-1] // maps.shape[-1]) / RADIUS
    seen = ~points[:, 0].isnan()
    differences = (maps[:, :3].float() - points.nan_to_num()).abs().sum(1)
    told = seen & scenes.canonical.repeat_interleave(scenes.tangents.shape[1])[:, None, None]
    there = nn.functional.binary_cross_entropy_with_logits(maps[:, 3].float(), seen.float())
    return (differences * told).sum() / told.sum().clamp_min(1) + there


class Training:
    """A run of training in a folder.

    Args:
        folder: where checkpoint, log, weights and settings lie.
        settings: of the run.
        device: to train on.
        precision: bf16 where the device multiplies it in hardware, or float32.
    """

    def __init__(
        self, folder: Path, settings: TrainSettings, device: torch.device, precision: Literal["auto", "bf16", "float32"]
    ) -> None:
        settings.validate()
        self.folder, self.settings, self.device = folder, settings, device
        self.bf16 = precision == "bf16" or (precision == "auto" and has_native_bfloat16(device))
        torch.manual_seed(settings.seed)
        self.network = SparsePoseNet(settings.network).to(device).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
        self.step, self.seconds, self.cpu_seconds, self.pictures = 0, 0.0, 0.0, 0
        self.frozen = False
        self.changes: list[list[Any]] = []
        """Steps from which on settings were others, and these."""

    # -- one step ------------------------------------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        """Warm-up, then half a cosine to a hundredth; the same again for what is left after freezing."""
        settings = self.settings
        freeze = settings.freeze_from * settings.steps
        begin, end = (0.0, freeze) if step < freeze else (freeze, float(settings.steps))
        part = (step - begin) / max(end - begin, 1.0)
        if part < settings.warmup:
            return settings.lr * (step - begin + 1) / (settings.warmup * (end - begin) + 1)
        part = (part - settings.warmup) / (1 - settings.warmup)
        return settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))

    def freeze(self) -> None:
        """From here on only refinement and its feature map are trained, beside a coarse estimate as it is evaluated."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith(REFINING))
        self.frozen = True

    def train_step(self, scenes: Scenes) -> list[Tensor]:
        """One step on some scenes; the losses of the coarse estimate and of each refinement step, detached."""
        settings = self.settings
        generator = generator_of(self.device, settings.seed, 3, self.step)
        refines = self.step >= settings.refine_from * settings.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        start, count, blind = None, 0, None
        if refines:
            blind = torch.rand(len(scenes), generator=generator, device=self.device) < settings.blind
            start = disturbed(scenes, settings, generator)
            count = 1 + int(torch.randint(settings.network.steps, (), generator=generator, device=self.device))
        if not self.frozen and self.step >= settings.freeze_from * settings.steps:
            self.network.load_state_dict(self.averaged.state_dict())
            self.freeze()
        self.network.train(not self.frozen)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            maps, vectors = self.network.encode(scenes.images, scenes.tangents)
            stages = self.network.stages(maps, vectors, scenes.tangents, start, count, generator, blind)
        losses = [pose_loss(cameras, scenes, settings.absolute) for cameras in stages]
        loss = losses[0] if len(losses) == 1 else (losses[0] + torch.stack(losses[1:]).mean()) / 2
        if settings.network.surface:
            loss = loss + settings.surface * surface_loss(maps, scenes)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        self.step += 1
        self.pictures += scenes.tangents.numel()
        return [value.detach() for value in losses]

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        mine: list[Tensor] = list(self.averaged.parameters())
        other: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(mine, other, 1 - decay)
        for kept, value in zip(self.averaged.buffers(), self.network.buffers()):
            kept.copy_(value if not value.is_floating_point() else kept.lerp(value, 1 - decay))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(
        self,
        signals: StopSignals,
        seconds: float | None = None,
        report_every: int = 200,
        save_every: float = 60.0,
        say=print,
    ) -> None:
        """Trains to the last step, or as long as asked.

        Args:
            signals: a signal comes between two steps, after which a checkpoint is written.
            seconds: to train in this call.
            report_every: steps between lines of the log.
            save_every: seconds between checkpoints.
            say: takes a line for the console.
        """
        pool = Pool(self.settings, self.step, self.device)
        held = [
            held_out_scenes("articulated", 40, 5, self.settings.network.size, self.settings.capture, 0, self.device),
            held_out_scenes("blobs", 24, 5, self.settings.network.size, self.settings.capture, 0, self.device),
        ]
        by_chance = chance(held[0])
        begin = saved = time.monotonic()
        begin_cpu = time.process_time()
        before, before_cpu, losses = self.seconds, self.cpu_seconds, []
        try:
            while self.step < self.settings.steps and (seconds is None or time.monotonic() - begin < seconds):
                with signals.held():
                    losses.append(torch.stack(self.train_step(pool.draw(self.step)))[[0, -1]])
                    pool.renew(self.step - 1)
                    now = time.monotonic()
                    self.seconds = before + now - begin
                    self.cpu_seconds = before_cpu + time.process_time() - begin_cpu
                    if self.step % report_every == 0 or self.step == self.settings.steps:
                        mean = torch.stack(losses).mean(0).tolist()
                        losses = []
                        if not math.isfinite(sum(mean)):
                            raise HashPoseError(
                                f"The loss was not finite at step {self.step}; train with a lower --settings.lr."
                            )
                        self._report(mean, held, by_chance, say)
                    if now - saved > save_every:
                        self.save()
                        saved = time.monotonic()
        finally:
            self.save()

    def _report(self, losses: list[float], held: list[Scenes], by_chance, say) -> None:
        refined = self.step > self.settings.refine_from * self.settings.steps
        rows: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "pictures": self.pictures,
            "lr": self.learning_rate(self.step),
            "loss_coarse": round(losses[0], 4),
            "loss_refined": round(losses[1], 4) if refined else None,
            "chance": by_chance.as_dict(),
        }
        for name, scenes in zip(("articulated", "blobs"), held):
            stages = estimates(self.averaged, scenes, self.settings.network.steps if refined else 0)
            rows[name] = [score(cameras, scenes).as_dict() for cameras in stages]
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(rows) + "\n")
        pairs = [f"{s['median_deg']:.1f} deg {s['within_30_deg']:.0%}" for s in rows["articulated"]]
        say(
            f"step {self.step}, {self.seconds:.0f} s, loss {losses[0]:.3f} {losses[1]:.3f}; median and within 30 deg "
            f"of pairs, coarse and after each step: {', '.join(pairs)}; chance {by_chance.within_deg[30]:.0%}; blobs "
            f"{rows['blobs'][0]['within_30_deg']:.0%} {rows['blobs'][-1]['within_30_deg']:.0%}"
        )

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes checkpoint and weights."""
        state = {
            "settings": json.dumps(asdict(self.settings)),
            "step": self.step,
            "changes": self.changes,
            "frozen": self.frozen,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "pictures": self.pictures,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with whole_file(self.folder / CHECKPOINT) as path:
            torch.save(state, path)
        note = {
            "settings": asdict(self.settings),
            "step": self.step,
            "changes": self.changes,
            "seconds": round(self.seconds),
            "cpu_seconds": round(self.cpu_seconds),
            "pictures": self.pictures,
        }
        save_weights(self.folder / WEIGHTS, self.averaged, note)

    def resume(self, allow_change: bool = False) -> bool:
        """Continues from the folder's checkpoint, if there is one.

        Args:
            allow_change: take other settings than the checkpoint was trained with from here on. Schedules are then
                those of the new settings.

        Returns:
            Whether there was one.

        Raises:
            HashPoseError: it cannot be read, or is of other settings.
        """
        path = self.folder / CHECKPOINT
        mine = json.loads(json.dumps(asdict(self.settings)))
        if not path.exists():
            write_whole(self.folder / SETTINGS, json.dumps(mine, indent=1) + "\n")
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            settings = json.loads(state["settings"])
            changed = {name: mine[name] for name in mine if settings.get(name) != mine[name]}
            if not changed or allow_change:
                self.network.load_state_dict(state["network"])
                self.averaged.load_state_dict(state["averaged"])
                self.optimizer.load_state_dict(state["optimizer"])
                for name in ("step", "seconds", "cpu_seconds", "pictures", "changes"):
                    setattr(self, name, state[name])
                if state["frozen"]:
                    self.freeze()
        except Exception as error:  # of pickle, zip files, JSON, shapes
            raise HashPoseError(f"{path} cannot be read ({one_line(error)}); choose another --output-dir.") from error
        if changed and not allow_change:
            raise HashPoseError(
                f"{path} was trained with other settings ({', '.join(changed)}); give the same ones, another "
                "--output-dir, or --allow-change True."
            )
        if changed:
            self.changes.append([self.step, changed])
            write_whole(self.folder / SETTINGS, json.dumps(mine, indent=1) + "\n")
        self._cut_log()
        return True

    def start_from(self, path: Path) -> None:
        """Takes the coarse part of the network from weights.

        Raises:
            HashPoseError: they cannot be read, or are of another network.
        """
        state, note = read_weights(path)
        own = self.network.state_dict()
        coarse = {name: value for name, value in own.items() if not name.startswith(REFINING)}
        missing = [name for name, value in coarse.items() if name not in state or state[name].shape != value.shape]
        if missing:
            raise HashPoseError(
                f"{path} is of another network ({missing[0]} differs); give the same --settings.network."
            )
        own.update({name: state[name].to(value) for name, value in coarse.items()})
        for network in (self.network, self.averaged):
            network.load_state_dict(own)
        self.changes.append(
            [0, {"init": {name: note.get(name) for name in ("step", "pictures", "cpu_seconds", "changes")}}]
        )

    def _cut_log(self) -> None:
        """Drops lines of steps that the checkpoint does not know."""
        log = self.folder / LOG
        if log.exists():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            write_whole(log, "".join(f"{line}\n" for line in kept))
