"""Networks and functions of kornia: features, filters, warps, colors, morphology and geometry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.coverage.packages.model import Axes, Build, PackageModel, with_call

_IMAGE, _GRAY, _PATCHES = (2, 3, 32, 48), (2, 1, 32, 48), (4, 1, 32, 32)
_POINTS, _MATRICES, _VECTORS = (2, 7, 2), (2, 3, 3), (6, 3)
_SIZED: Axes = ((0, 0, 1), (0, 2, 8), (0, 3, 8))

# (name, constructor, input shape)
_NETWORKS: tuple[tuple[str, Callable[[Any], Any], tuple[int, ...]], ...] = (
    ("DISK", lambda k: k.feature.DISK().heatmap_and_dense_descriptors, _IMAGE),
    ("KeyNet", lambda k: k.feature.KeyNet(False), _GRAY),
    ("SOLD2_detector", lambda k: k.feature.SOLD2_detector(False).model, (2, 1, 64, 64)),
    ("XFeatModel", lambda k: k.feature.XFeatModel(), (2, 1, 64, 64)),
    ("ALIKED", lambda k: k.feature.ALIKED(), (2, 3, 64, 64)),
    ("DeDoDe", lambda k: k.feature.dedode.dedode_models.get_detector("L", torch.float32), (2, 3, 64, 64)),
    ("BlobHessian", lambda k: k.feature.BlobHessian(), _GRAY),
    ("CornerGFTT", lambda k: k.feature.CornerGFTT(), _GRAY),
    ("CornerHarris", lambda k: k.feature.CornerHarris(0.04), _GRAY),
    ("TinyViT", lambda k: k.contrib.TinyViT(64, 3, 10, [16] * 4, [1] * 4, [2] * 4, [4] * 4), (2, 3, 64, 64)),
)
_PATCH_NETWORKS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("HardNet", lambda k: k.feature.HardNet(False)),
    ("HardNet8", lambda k: k.feature.HardNet8(False)),
    ("HyNet", lambda k: k.feature.HyNet(False)),
    ("SOSNet", lambda k: k.feature.SOSNet(False)),
    ("TFeat", lambda k: k.feature.TFeat(False)),
    ("OriNet", lambda k: k.feature.OriNet(False)),
    ("LAFAffNet", lambda k: k.feature.LAFAffNetShapeEstimator(False).features),
    ("SIFTDescriptor", lambda k: k.feature.SIFTDescriptor(32)),
    ("MKDDescriptor", lambda k: k.feature.MKDDescriptor(32, whitening=None)),
)
_IMAGES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("bilateral_blur", lambda k, x: k.filters.bilateral_blur(x, (3, 3), 0.1, (1.5, 1.5))),
    ("blur_pool2d", lambda k, x: k.filters.blur_pool2d(x, 3)),
    ("box_blur", lambda k, x: k.filters.box_blur(x, (3, 5))),
    ("canny", lambda k, x: k.filters.canny(x)[1]),
    ("edge_aware_blur_pool2d", lambda k, x: k.filters.edge_aware_blur_pool2d(x.abs(), 3)),
    ("gaussian_blur2d", lambda k, x: k.filters.gaussian_blur2d(x, (5, 5), (1.5, 1.0))),
    ("guided_blur", lambda k, x: k.filters.guided_blur(x, x, 3, 0.1)),
    ("laplacian", lambda k, x: k.filters.laplacian(x, 3)),
    ("max_blur_pool2d", lambda k, x: k.filters.max_blur_pool2d(x, 3)),
    ("median_blur", lambda k, x: k.filters.median_blur(x, (3, 3))),
    ("motion_blur", lambda k, x: k.filters.motion_blur(x, 5, 35.0, 0.5)),
    ("otsu_threshold", lambda k, x: k.filters.otsu_threshold(x.abs(), nbins=16)[0]),
    ("sobel", lambda k, x: k.filters.sobel(x)),
    ("spatial_gradient", lambda k, x: k.filters.spatial_gradient(x, "diff", 2)),
    ("unsharp_mask", lambda k, x: k.filters.unsharp_mask(x, (3, 3), (1.0, 1.0))),
    ("fft_conv", lambda k, x: k.filters.fft_conv(x, torch.ones(1, 3, 3) / 9)),
    ("closing", lambda k, x: k.morphology.closing(x, torch.ones(3, 3))),
    ("dilation_convolution", lambda k, x: k.morphology.dilation(x, torch.ones(3, 3), engine="convolution")),
    ("gradient", lambda k, x: k.morphology.gradient(x, torch.ones(3, 5))),
    ("top_hat", lambda k, x: k.morphology.top_hat(x, torch.ones(3, 3))),
    ("pyrdown", lambda k, x: k.geometry.pyrdown(x)),
    ("pyrup", lambda k, x: k.geometry.pyrup(x)),
    ("build_pyramid", lambda k, x: k.geometry.build_pyramid(x, 3)[-1]),
    ("laplacian_pyramid", lambda k, x: k.geometry.transform.build_laplacian_pyramid(x, 2)[0]),
    ("resize", lambda k, x: k.geometry.resize(x, (24, 20), antialias=True)),
    ("rescale", lambda k, x: k.geometry.rescale(x, 1.5)),
    ("hflip", lambda k, x: k.geometry.hflip(x)),
    ("rot180", lambda k, x: k.geometry.rot180(x)),
    ("rotate", lambda k, x: k.geometry.rotate(x, torch.full((x.shape[0],), 30.0))),
    ("translate", lambda k, x: k.geometry.translate(x, x.mean((2, 3))[:, :2])),
    ("scale", lambda k, x: k.geometry.scale(x, x.mean((2, 3))[:, :2] + 1.2)),
    ("shear", lambda k, x: k.geometry.shear(x, x.mean((2, 3))[:, :2])),
    ("warp_affine", lambda k, x: k.geometry.warp_affine(x, _eye(x)[:, :2], (24, 40))),
    ("warp_perspective", lambda k, x: k.geometry.warp_perspective(x, _eye(x), (24, 40), padding_mode="border")),
    ("homography_warp", lambda k, x: k.geometry.homography_warp(x, _eye(x), (24, 40))),
    ("remap", lambda k, x: k.geometry.remap(x, x[:, 0] * 10, x[:, 1] * 10)),
    ("elastic_transform2d", lambda k, x: k.geometry.elastic_transform2d(x, x[:, :2], (5, 5), (2.0, 2.0))),
    ("center_crop", lambda k, x: k.geometry.center_crop(x, (16, 20))),
    ("crop_and_resize", lambda k, x: k.geometry.crop_and_resize(x, _box(x), (12, 16))),
    ("warp_image_tps", lambda k, x: k.geometry.transform.warp_image_tps(
        x, x[:, :2, 0, :4].mT, x[:, :2, 1, :4].mT, x[:, :2, 2, :3].mT)),
    ("extract_tensor_patches", lambda k, x: k.contrib.extract_tensor_patches(x, 8, 8)),
    ("distance_transform", lambda k, x: k.contrib.distance_transform(x.abs())),
    ("connected_components", lambda k, x: k.contrib.connected_components(x[:, :1].sigmoid(), 5)),
    ("adjust_hue", lambda k, x: k.enhance.adjust_hue(x.sigmoid(), 0.5)),
    ("adjust_contrast", lambda k, x: k.enhance.adjust_contrast(x.sigmoid(), 1.3)),
    ("adjust_gamma", lambda k, x: k.enhance.adjust_gamma(x.sigmoid(), 1.3)),
    ("adjust_saturation", lambda k, x: k.enhance.adjust_saturation(x.sigmoid(), 1.3)),
    ("adjust_log", lambda k, x: k.enhance.adjust_log(x.sigmoid())),
    ("equalize", lambda k, x: k.enhance.equalize(x.sigmoid())),
    ("equalize_clahe", lambda k, x: k.enhance.equalize_clahe(x.sigmoid(), grid_size=(2, 2))),
    ("histogram2d", lambda k, x: k.enhance.image_histogram2d(x.sigmoid(), 0.0, 1.0, 16)[0]),
    ("integral_image", lambda k, x: k.enhance.integral_image(x)),
    ("jpeg", lambda k, x: k.enhance.jpeg_codec_differentiable(x.sigmoid(), torch.tensor([50.0]))),
    ("normalize_min_max", lambda k, x: k.enhance.normalize_min_max(x)),
    ("posterize", lambda k, x: k.enhance.posterize(x.sigmoid(), 3)),
    ("sharpness", lambda k, x: k.enhance.sharpness(x.sigmoid(), 0.5)),
    ("solarize", lambda k, x: k.enhance.solarize(x.sigmoid(), 0.5)),
    ("zca_whiten", lambda k, x: k.enhance.zca_whiten(x.flatten(1)[:, :5])),
    *((f"color/{name}", lambda k, x, name=name: getattr(k.color, name)(x.sigmoid())) for name in (
        "rgb_to_hls", "hls_to_rgb", "rgb_to_hsv", "hsv_to_rgb", "rgb_to_lab", "lab_to_rgb", "rgb_to_luv", "luv_to_rgb",
        "rgb_to_xyz", "rgb_to_ycbcr", "ycbcr_to_rgb", "rgb_to_yuv", "rgb_to_linear_rgb", "linear_rgb_to_rgb", "sepia",
        "rgb_to_grayscale", "rgb_to_bgr", "rgb_to_rgb255", "normals_to_rgb255")),
    ("color/yuv420", lambda k, x: k.color.rgb_to_yuv420(x.sigmoid())[1]),
    ("color/raw", lambda k, x: k.color.raw_to_rgb(x[:, :1].sigmoid(), k.color.CFA.BG)),
    ("color/colormap", lambda k, x: k.color.apply_colormap(x[:, :1].sigmoid(), k.color.ColorMap("jet", 64))),
    ("loss/ssim", lambda k, x: k.losses.ssim_loss(x, x.flip(-1), 5)),
    ("loss/ms_ssim", lambda k, x: k.losses.MS_SSIMLoss()(x.sigmoid(), x.flip(-1).sigmoid())),
    ("loss/total_variation", lambda k, x: k.losses.total_variation(x)),
    ("loss/inverse_depth", lambda k, x: k.losses.inverse_depth_smoothness_loss(x[:, :1], x)),
    ("depth_to_3d", lambda k, x: k.geometry.depth_to_3d_v2(x[:, 0].abs(), _eye(x))),
    ("depth_to_normals", lambda k, x: k.geometry.depth.depth_to_normals(x[:, :1].abs(), _eye(x))),
    ("soft_argmax", lambda k, x: k.geometry.spatial_soft_argmax2d(x)),
    ("conv_soft_argmax", lambda k, x: k.geometry.ConvSoftArgmax2d((3, 3), (1, 1), (1, 1))(x)),
    ("spatial_expectation", lambda k, x: k.geometry.spatial_expectation2d(x.softmax(-1))),
    ("render_gaussian", lambda k, x: k.geometry.render_gaussian2d(x[:, 0, 0, :2], x[:, 1, 0, :2].abs(), (16, 20))),
    ("nms2d", lambda k, x: k.geometry.nms2d(x, (3, 3))),
)  # fmt: skip
_ROWS: tuple[tuple[str, tuple[int, ...], Callable[..., Any]], ...] = (
    ("axis_angle_to_quaternion", _VECTORS, lambda k, v: k.geometry.axis_angle_to_quaternion(v)),
    ("axis_angle_to_rotation_matrix", _VECTORS, lambda k, v: k.geometry.axis_angle_to_rotation_matrix(v)),
    ("cart2pol", _VECTORS, lambda k, v: k.geometry.cart2pol(v[:, 0], v[:, 1])),
    ("points_from_homogeneous", _VECTORS, lambda k, v: k.geometry.convert_points_from_homogeneous(v)),
    ("quaternion_exp_to_log", (6, 4), lambda k, v: k.geometry.quaternion_exp_to_log(
        k.geometry.normalize_quaternion(v))),
    ("quaternion_log_to_exp", _VECTORS, lambda k, v: k.geometry.quaternion_log_to_exp(v)),
    ("quaternion_to_axis_angle", (6, 4), lambda k, v: k.geometry.quaternion_to_axis_angle(v)),
    ("quaternion_to_rotation_matrix", (6, 4), lambda k, v: k.geometry.quaternion_to_rotation_matrix(v)),
    ("rotation_matrix_to_quaternion", _VECTORS, lambda k, v: k.geometry.rotation_matrix_to_quaternion(
        k.geometry.axis_angle_to_rotation_matrix(v))),
    ("euler", (6, 4), lambda k, v: k.geometry.euler_from_quaternion(*v.unbind(1))[0]),
    ("transform_points", _POINTS, lambda k, p: k.geometry.transform_points(_eye(p), p)),
    ("normalize_pixels", _POINTS, lambda k, p: k.geometry.normalize_pixel_coordinates(p, 24, 32)),
    ("project_points", (2, 7, 3), lambda k, p: k.geometry.project_points(p, _eye(p)[:, None])),
    ("perspective_transform", (2, 4, 2), lambda k, p: k.geometry.get_perspective_transform(p, p.flip(1) * 2 + 1)),
    ("tps", _POINTS, lambda k, p: k.geometry.transform.get_tps_transform(p, p * 2 + 1)[0]),
    ("sampson_distance", _POINTS, lambda k, p: k.geometry.sampson_epipolar_distance(p, p + 1, _eye(p) + 0.1)),
    ("epilines", _POINTS, lambda k, p: k.geometry.epipolar.compute_correspond_epilines(p, _eye(p) + 0.1)),
    ("triangulate_points", _POINTS, lambda k, p: k.geometry.triangulate_points(
        _eye(p, 4)[:, :3], _eye(p, 4)[:, :3] + 0.3, p, p * 1.1)),
    ("essential_from_Rt", _MATRICES, lambda k, m: k.geometry.essential_from_Rt(m, m[..., :1], m + 1, m[..., 1:2])),
    ("find_homography_dlt", _POINTS, lambda k, p: k.geometry.find_homography_dlt(p, p * 2 + 1)),
    ("undistort_points", _POINTS, lambda k, p: k.geometry.undistort_points(p, _eye(p), p[:, 0].repeat(1, 2) * 0.01)),
    ("boxes_iou", (2, 4), lambda k, b: k.metrics.mean_iou_bbox(b.abs().cumsum(1), b.abs().cumsum(1))),
    ("so3_exp", _VECTORS, lambda k, v: k.geometry.So3.exp(v).matrix()),
    ("se3_exp", (6, 6), lambda k, v: k.geometry.Se3.exp(v).matrix()),
    ("descriptor_matches", (9, 16), lambda k, d: k.feature.match_nn(d, d.flip(0) + 0.1)[0]),
)  # fmt: skip


def kornia_models() -> Iterator[PackageModel]:
    """Networks of dynamic batch, height and width; patches and vectors with dynamic batch; functions of images."""
    for name, make, shape in _NETWORKS:
        yield PackageModel(name, _network(make, shape), _SIZED)
    for name, make in _PATCH_NETWORKS:
        yield PackageModel(name, _network(make, _PATCHES))
    yield PackageModel("LoFTR", _loftr, ((0, 2, 16), (0, 3, 16)))
    for name, function in _IMAGES:
        yield PackageModel(f"images/{name}", _function(function, _IMAGE), _SIZED)
    for name, shape, function in _ROWS:
        axes: Axes = ((0, 0, 1), (0, 1, 1)) if shape == _POINTS else ((0, 0, 1),)
        yield PackageModel(f"geometry/{name}", _function(function, shape), axes)


def _kornia() -> Any:
    package = importlib.import_module("kornia")
    for name in ("contrib", "enhance", "feature", "geometry", "losses", "metrics", "morphology"):
        importlib.import_module(f"kornia.{name}")
    return package


def _network(make: Callable[[Any], Any], shape: tuple[int, ...]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        net = make(_kornia())
        bound = getattr(net, "__self__", None)
        called = (lambda owner, x: net(x)) if bound is not None else (lambda owner, x: owner(x))
        return with_call(net if bound is None else bound, called), (torch.randn(shape),)

    return build


def _function(function: Callable[..., Any], shape: tuple[int, ...]) -> Build:
    def build() -> tuple[Any, tuple[Any, ...]]:
        package = _kornia()
        of_kornia = package.geometry.transform.Hflip()  # like a network that calls kornia's functions
        return with_call(of_kornia, lambda _, x: function(package, x)), (torch.randn(shape),)

    return build


def _loftr() -> tuple[Any, tuple[Any, ...]]:
    """LoFTR up to the coarse features of two images: matches are then selected by value."""
    net = _kornia().feature.LoFTR(None)

    def call(net: Any, first: Any, second: Any) -> Any:
        coarse = [net.pos_encoding(net.backbone(each)[0]).flatten(2).mT for each in (first, second)]
        return net.loftr_coarse(*coarse)[0]

    return with_call(net, call), (torch.randn(1, 1, 64, 64), torch.randn(1, 1, 64, 64))


def _eye(like: Any, size: int = 3) -> Any:
    """A matrix near the identity for each sample, computed from its values."""
    batch = like.shape[0]
    noise = like.reshape(batch, -1)[:, :1, None] * 0.01
    return torch.eye(size).expand(batch, size, size) + noise


def _box(like: Any) -> Any:
    corners = torch.tensor([[3.0, 4.0], [20.0, 4.0], [20.0, 15.0], [3.0, 15.0]])
    return corners.expand(like.shape[0], 4, 2)
