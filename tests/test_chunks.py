"""Rendering in chunks of as many rays as memory allows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hashpose_ns import chunks, methods
from hashpose_ns.encoding import HashEncodingConfig
from hashpose_ns.field import DecoderConfig, HashPoseFieldConfig
from hashpose_ns.model import HashPoseModel, HashPoseModelConfig
from hashpose_ns.peers.methods import peer_config
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

HEIGHT, WIDTH = 30, 40


def make_model(**settings) -> HashPoseModel:
    torch.manual_seed(0)
    encoding = HashEncodingConfig(num_levels=4, max_resolution=32, log2_hashmap_size=10, init_scale=1.0)
    field = HashPoseFieldConfig(encoding=encoding, decoder=DecoderConfig(width=32, precision="float32"))
    box = {"scene": "none", "sampler": "uniform", "near_plane": 1.0, "far_plane": 5.0}
    return build(HashPoseModelConfig(field=field, num_samples=8, **box, **settings))


def build(config: HashPoseModelConfig) -> HashPoseModel:
    scene_box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return config.setup(scene_box=scene_box, num_train_data=1, metadata={}).eval()


def make_rays() -> RayBundle:
    pose = torch.eye(3, 4)
    pose[2, 3] = 3.0
    cameras = Cameras(camera_to_worlds=pose[None], fx=40.0, fy=40.0, cx=20.0, cy=15.0, width=WIDTH, height=HEIGHT)
    return cameras.generate_rays(camera_indices=0, keep_shape=True)


@pytest.mark.parametrize("chunk", [0, 7, 257, HEIGHT * WIDTH, 10_000])
def test_an_image_does_not_depend_on_the_chunks(chunk):
    model = make_model(num_importance_samples=8, eval_num_rays_per_chunk=chunk)
    with torch.no_grad():
        whole = model(make_rays().flatten())
    image = model.get_outputs_for_camera_ray_bundle(make_rays())
    assert set(image) == {"rgb", "accumulation", "depth"}
    # nerfstudio clips depths to those of the chunk's samples, which shows on rays that meet next to nothing.
    met = whole["accumulation"][:, 0] > 0.05
    assert 0 < met.sum() < len(met)
    for name, values in image.items():
        assert values.shape[:2] == (HEIGHT, WIDTH)
        rows = met if name == "depth" else torch.ones_like(met)
        torch.testing.assert_close(
            values.view(HEIGHT * WIDTH, -1)[rows], whole[name][rows], rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}"
        )


@pytest.mark.parametrize("most", [256, 300, 1000])
def test_where_memory_runs_out_chunks_become_smaller(most):
    taken = []

    def render(rays: RayBundle):
        if len(rays) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        taken.append(len(rays))
        return {"rgb": rays.directions}

    rays = make_rays()
    image = chunks.render_in_chunks(render, rays, 1024, torch.device("cpu"))
    assert torch.equal(image["rgb"], rays.directions)
    assert sum(taken) == HEIGHT * WIDTH and max(taken) > most / 2, "as large as can be, and nothing rendered twice"


def test_where_even_the_smallest_chunk_does_not_fit_it_says_so():
    def render(rays: RayBundle):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        chunks.render_in_chunks(render, make_rays(), 1024, torch.device("cpu"))


def peak_bytes(model: HashPoseModel, rays: RayBundle) -> int:
    """Most that was allocated at once while rendering."""
    with torch.no_grad():
        model(rays)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model(rays)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", ["hashpose", "blender", "llff", "small", "barf"])
def test_memory_of_a_chunk_is_foreseen(name):
    """Against the profiler's peak; a field that took more than foreseen would fill a small GPU."""
    if name == "barf":
        config = peer_config("barf").pipeline.model
    else:
        config = copy.deepcopy(getattr(methods, name).config.pipeline.model)
        config.field.encoding.log2_hashmap_size = 12  # tables are no part of a chunk
    model = build(config)
    rays = make_rays().flatten()[:256]
    bfloat16 = name != "barf" and model.field.uses_bfloat16(model.device)
    samples = max(config.num_samples, config.num_importance_samples)
    foreseen = len(rays) * samples * chunks.bytes_per_sample(model.field, bfloat16)
    assert 0.6 * foreseen < peak_bytes(model, rays) < 1.25 * foreseen


def test_a_gpu_gives_a_quarter_of_what_is_free(monkeypatch):
    free = 3 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - (1 << 30), 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 << 30)
    device = torch.device("cuda")
    assert chunks.memory_for_a_chunk(device) == free // 4
    assert chunks.rays_that_fit(100_000, device) == free // 4 // 100_000
    assert chunks.rays_that_fit(1, device) == chunks.MOST
    assert chunks.rays_that_fit(free, device) == chunks.FEWEST
