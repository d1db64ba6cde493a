"""The networks of the weight layouts, built independently of sr_runner after their own code.

EDSR-PyTorch and BasicSR as small torch modules; krasserm/super-resolution as NumPy on N x H x W x C in TensorFlow's
conventions, with a writer of the HDF5 that Keras' `save_weights` made (names and order as TensorFlow 2.15 and
tensorflow-addons 0.23 wrote them).
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.4488, 0.4371, 0.4040)


# ---- EDSR-PyTorch: 0..255 in and out --------------------------------------------------------------------------------


class MeanShift(nn.Conv2d):
    def __init__(self, rgb_range: float, sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * rgb_range * torch.tensor(MEAN)


class EdsrPytorchBlock(nn.Module):
    def __init__(self, n_feats: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(n_feats, n_feats, 3, 1, 1), nn.ReLU(), nn.Conv2d(n_feats, n_feats, 3, 1, 1))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mul(self.res_scale) + x


def upsampler(scale: int, n_feats: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for factor in {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]:
        layers += [nn.Conv2d(n_feats, factor**2 * n_feats, 3, 1, 1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


class EdsrPytorch(nn.Module):
    def __init__(self, scale: int, n_feats: int, blocks: int, res_scale: float, rgb_range: float = 255) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(rgb_range, -1), MeanShift(rgb_range, 1)
        self.head = nn.Sequential(nn.Conv2d(3, n_feats, 3, 1, 1))
        self.body = nn.Sequential(
            *(EdsrPytorchBlock(n_feats, res_scale) for _ in range(blocks)), nn.Conv2d(n_feats, n_feats, 3, 1, 1)
        )
        self.tail = nn.Sequential(upsampler(scale, n_feats), nn.Conv2d(n_feats, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


# ---- BasicSR: 0..1 in and out ---------------------------------------------------------------------------------------


class ResidualBlockNoBN(nn.Module):
    def __init__(self, num_feat: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1, self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x))) * self.res_scale


class BasicSrEdsr(nn.Module):
    def __init__(self, scale: int, num_feat: int, blocks: int, res_scale: float, img_range: float = 255.0) -> None:
        super().__init__()
        self.img_range, self.mean = img_range, torch.tensor(MEAN).view(1, 3, 1, 1)
        self.conv_first = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlockNoBN(num_feat, res_scale) for _ in range(blocks)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = upsampler(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean) * self.img_range)
        x = self.conv_last(self.upsample(self.conv_after_body(self.body(x)) + x))
        return x / self.img_range + self.mean


class BasicSrMsrResNet(nn.Module):
    def __init__(self, scale: int, num_feat: int, blocks: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv_first = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlockNoBN(num_feat, 1) for _ in range(blocks)))
        self.upconv1 = nn.Conv2d(num_feat, num_feat * (scale**2 if scale < 4 else 4), 3, 1, 1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * 4, 3, 1, 1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        def act(t: Tensor) -> Tensor:
            return F.leaky_relu(t, 0.1)

        out = self.body(act(self.conv_first(x)))
        if self.scale == 4:
            out = act(F.pixel_shuffle(self.upconv1(out), 2))
            out = act(F.pixel_shuffle(self.upconv2(out), 2))
        else:
            out = act(F.pixel_shuffle(self.upconv1(out), self.scale))
        out = self.conv_last(act(self.conv_hr(out)))
        return out + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that makes every layer matter, biases included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if not name.startswith(("sub_mean", "add_mean")):
            size = 0.3 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * size
    return network.eval()


# ---- krasserm/super-resolution: NumPy, N x H x W x C, 0..255 in and out ---------------------------------------------

Layer = tuple[str, dict[str, np.ndarray]]


class Keras:
    """A model being built: every layer draws its weights, remembers them under Keras' names, and computes."""

    def __init__(self, seed: int = 0) -> None:
        self.layers: list[Layer] = []
        self.random = np.random.default_rng(seed)
        self.counts: dict[str, int] = {}

    def add(self, kind: str, weights: dict[str, np.ndarray], name: str | None = None) -> None:
        if name is None:
            number = self.counts.get(kind, 0)
            self.counts[kind] = number + 1
            name = f"{kind}_{number}" if number else kind
        self.layers.append((name, {k: v if v.dtype == bool else v.astype(np.float32) for k, v in weights.items()}))

    def nothing(self, kind: str) -> None:
        self.add(kind, {})

    def draw(self, *shape: int) -> np.ndarray:
        size = 0.05 if len(shape) == 1 else 1.2 / np.prod(shape[:-1]) ** 0.5
        return (self.random.standard_normal(shape) * size).astype(np.float32)

    def conv2d(self, x: np.ndarray, filters: int, k: int, strides: int = 1, name: str | None = None) -> np.ndarray:
        kernel, bias = self.draw(k, k, x.shape[-1], filters), self.draw(filters)
        self.add("conv2d", {"kernel": kernel, "bias": bias}, name)
        return conv_same(x, kernel, strides) + bias

    def weight_norm_conv2d(self, x: np.ndarray, filters: int, k: int, *, called: bool = True) -> np.ndarray:
        kernel, bias = self.draw(k, k, x.shape[-1], filters), self.draw(filters)
        length = np.sqrt((kernel.astype(np.float64) ** 2).sum((0, 1, 2)))
        g = (length * self.random.uniform(0.5, 1.5, filters)).astype(np.float32) if called else np.ones(filters)
        self.add("weight_normalization", {"g": g, "kernel": kernel, "bias": bias, "initialized": np.array(called)})
        return conv_same(x, kernel / length * (g if called else length)) + bias

    def batch_normalization(self, x: np.ndarray) -> np.ndarray:
        c = x.shape[-1]
        gamma, beta, mean = self.random.uniform(0.5, 1.5, c), self.draw(c), self.draw(c)
        variance = self.random.uniform(0.5, 1.5, c)
        weights = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance}
        self.add("batch_normalization", weights)
        gamma, variance = gamma.astype(np.float32), variance.astype(np.float32)
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def prelu(self, x: np.ndarray) -> np.ndarray:
        alpha = self.random.uniform(-0.3, 0.3, (1, 1, x.shape[-1])).astype(np.float32)
        self.add("p_re_lu", {"alpha": alpha})
        return np.where(x > 0, x, alpha * x)

    def dense(self, x: np.ndarray, units: int) -> np.ndarray:
        kernel, bias = self.draw(x.shape[-1], units), self.draw(units)
        self.add("dense", {"kernel": kernel, "bias": bias})
        return x @ kernel + bias


def conv_same(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """TensorFlow's 'SAME': output ceil(size / stride), the odd pixel of padding goes right and below."""
    pads = []
    for size, k in zip(x.shape[1:3], kernel.shape[:2], strict=True):
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijco->nhwo", windows[:, ::stride, ::stride], kernel.astype(np.float64))


def depth_to_space(x: np.ndarray, r: int) -> np.ndarray:
    """`tf.nn.depth_to_space`: channel (i r + j) C + c goes to pixel (i, j), channel c."""
    n, h, w, depth = x.shape
    x = x.reshape(n, h, w, r, r, depth // r**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * r, w * r, depth // r**2)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.2 * x)


_MEAN255 = np.array(MEAN) * 255


def keras_edsr(lr: np.ndarray, scale: int, filters: int, blocks: int, scaling: float) -> tuple[np.ndarray, list[Layer]]:
    m = Keras()
    m.nothing("input"), m.nothing("lambda")
    x = b = m.conv2d((lr - _MEAN255) / 127.5, filters, 3)
    for _ in range(blocks):
        b = b + scaling * m.conv2d(relu(m.conv2d(b, filters, 3)), filters, 3)
        m.nothing("add")
    x = x + m.conv2d(b, filters, 3)
    for i, factor in enumerate({2: [2], 3: [3], 4: [2, 2]}[scale], start=1):
        x = depth_to_space(m.conv2d(x, filters * factor**2, 3, name=f"conv2d_{i}_scale_{factor}"), factor)
        m.nothing("lambda")
    x = m.conv2d(x, 3, 3)
    return x * 127.5 + _MEAN255, m.layers


def keras_wdsr(
    lr: np.ndarray,
    kind: str,
    scale: int,
    filters: int,
    blocks: int,
    expansion: int,
    scaling: float,
    *,
    called: bool = True,
) -> tuple[np.ndarray, list[Layer]]:
    m = Keras()

    def conv(x: np.ndarray, out: int, k: int) -> np.ndarray:
        return m.weight_norm_conv2d(x, out, k, called=called)

    x = (lr - _MEAN255) / 127.5
    b = conv(x, filters, 3)
    for _ in range(blocks):
        if kind == "a":
            y = conv(relu(conv(b, filters * expansion, 3)), filters, 3)
        else:
            y = conv(conv(relu(conv(b, filters * expansion, 1)), int(filters * 0.8), 1), filters, 3)
        b = b + scaling * y
    sr = depth_to_space(conv(b, 3 * scale**2, 3), scale) + depth_to_space(conv(x, 3 * scale**2, 5), scale)
    return sr * 127.5 + _MEAN255, m.layers


def keras_srresnet(lr: np.ndarray, filters: int, blocks: int) -> tuple[np.ndarray, list[Layer]]:
    m = Keras()
    x = first = m.prelu(m.conv2d(lr / 255, filters, 9))
    for _ in range(blocks):
        y = m.prelu(m.batch_normalization(m.conv2d(x, filters, 3)))
        x = x + m.batch_normalization(m.conv2d(y, filters, 3))
    x = first + m.batch_normalization(m.conv2d(x, filters, 3))
    for _ in range(2):
        x = m.prelu(depth_to_space(m.conv2d(x, filters * 4, 3), 2))
    return (np.tanh(m.conv2d(x, 3, 9)) + 1) * 127.5, m.layers


def keras_discriminator(hr: np.ndarray, filters: int) -> tuple[np.ndarray, list[Layer]]:
    m = Keras()
    x = leaky_relu(m.conv2d(hr / 127.5 - 1, filters, 3))
    x = leaky_relu(m.batch_normalization(m.conv2d(x, filters, 3, strides=2)))
    for width in (2, 4, 8):
        x = leaky_relu(m.batch_normalization(m.conv2d(x, filters * width, 3)))
        x = leaky_relu(m.batch_normalization(m.conv2d(x, filters * width, 3, strides=2)))
    x = leaky_relu(m.dense(x.reshape(len(x), -1), 1024))
    return 1 / (1 + np.exp(-m.dense(x, 1))), m.layers


def write_h5(path: Path, layers: list[Layer], *, chunk: int | None = None, group: str = "", inside: str = "") -> Path:
    """As `save_weights` does. `chunk` splits lists of names, as Keras does for long ones; `group` is `model_weights`
    for a whole saved model; `inside` is a wrapped layer's own name between the wrapper's and the weight's."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        _names(root, "layer_names", [name for name, _ in layers], chunk)
        root.attrs["backend"], root.attrs["keras_version"] = "tensorflow", "2.15.0"
        for name, weights in layers:
            node = root.create_group(name)
            full = [f"{name}/{weight if weight == 'g' else inside + weight}:0" for weight in weights]
            _names(node, "weight_names", full, chunk)
            for key, value in zip(full, weights.values(), strict=True):
                node.create_dataset(key, data=value)
    return path


def _names(node: h5py.Group, attribute: str, names: list[str], chunk: int | None) -> None:
    encoded = [name.encode() for name in names]
    if chunk is None or len(encoded) <= chunk:
        node.attrs[attribute] = encoded if encoded else np.array([], "S1")
    else:
        for i in range(0, len(encoded), chunk):
            node.attrs[f"{attribute}{i // chunk}"] = encoded[i : i + chunk]
