"""A fitness that heals: perplexity of a subnet's student after what slicing took away is put back."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..compat import uncompiled
from ..cost.counts import flops_per_token
from ..errors import HealingError, WhittleError
from ..evaluation import as_input_ids, cross_entropy, evaluating, perplexity
from ..fingerprints import fingerprint
from ..healing.parts import entries, layer_after, module_of, output_matrix, projections, writer_features
from ..healing.regression import Moments
from ..healing.student_weights import StudentWeights
from ..models.architecture import Weight, get_architecture, head_dim
from ..models.slicing import slice_weights, student_model
from ..models.supernet import axis_rows
from ..models.weights import check_no_subnet, is_sharded
from ..subnet import Shape, SubnetConfig
from .base import TokenFitness

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel


class HealedPerplexity(TokenFitness):
    """Perplexity of a subnet's student, healed by what the super-network computed on calibration text.

    Second moments of all that the full super-network computes are gathered once; healing a candidate takes sub-blocks
    of them and solves. Unlike `extract_subnet(heal=...)`, it takes the super-network's stream in the student's basis
    for the student's own, so that layers do not depend on each other; that tells less about subnets without the first
    layer, whose stream is another. The super-network must not change between.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): held-out token ids, `(blocks, block_size)`.
        calibration_blocks (`datasets.Dataset` or `torch.Tensor`): token ids to gather moments on: training text.
        batch_size (`int`, *optional*, defaults to 16): blocks at a time.
        ridge (`float`, *optional*, defaults to 0.01): strength of the regressions, relative to the square of each
            feature.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar while moments are gathered.

    Raises:
        ValueError: if `ridge` is not positive.
        SubnetError: if a subnet is active.
        WhittleError: if the super-network is sharded, or its moments do not fit into memory.
        HealingError: if it computes what is not a number.
    """

    name = "healed-perplexity"

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        calibration_blocks: "Dataset | torch.Tensor",
        batch_size: int = 16,
        *,
        ridge: float = 1e-2,
        progress: bool = False,
    ):
        if is_sharded(supernet):
            raise WhittleError(f"{self.name} needs the whole model in each process; use perplexity for a sharded one")
        supernet = uncompiled(supernet)  # what is run are its students
        check_no_subnet(supernet)
        super().__init__(supernet, blocks, batch_size)
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be a positive number, got {ridge}")
        self.ridge = ridge
        self._calibration_ids = as_input_ids(calibration_blocks, supernet.config.vocab_size)
        self._moments = SupernetMoments(supernet, self._calibration_ids, batch_size, progress)

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        input_ids = self.input_ids[self.rows(share)]
        return perplexity(cross_entropy(self.student(subnet), input_ids, self.batch_size))

    def student(self, subnet: SubnetConfig) -> "PreTrainedModel":
        """The healed student of a subnet, in single precision."""
        subnet.validate(self.supernet.full_config)
        return self._moments.heal(self.supernet, subnet, self.ridge)

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return super().flops(subnet, share) + self.healing_flops(subnet)

    def healing_flops(self, subnet: SubnetConfig) -> int:
        """FLOPs of the regressions for one subnet, those of their Cholesky factors and products."""
        config, shape = self.supernet.full_config, subnet.shape
        size, full = config.hidden_size, writer_features(config, Shape.from_config(config))

        def fitted(features: int) -> int:
            return features**3 // 3 + 4 * features**2 * shape.hidden_size + 2 * features * size * shape.hidden_size

        total = 0
        for position, groups in enumerate(writer_features(config, shape)):
            layer = subnet.layers[position]
            for number, features in enumerate(groups):
                total += fitted(features) + 2 * features * sum(groups[:number]) * shape.hidden_size
                if number + 1 < len(groups):
                    total += 2 * features * size * sum(full[layer][: number + 1])
            if position == 0 and layer > 0 and len(groups) > 1:  # what was written before is fitted to all together
                total += fitted(sum(groups) - len(groups) + 1)
        return total + self._reading_flops(shape)

    def _reading_flops(self, shape: Shape) -> int:
        """FLOPs of healing what reads the stream: of each regression, its products, and folding it into its matrix."""
        config, channels = self.supernet.full_config, shape.hidden_size
        size, head = config.hidden_size, output_matrix(config)
        rows = [] if head is None else [config.vocab_size]
        for layer in range(shape.num_hidden_layers):
            rows += [
                entries(weight, 0, config, shape, layer) for group in projections(config) for weight in group.readers
            ]
        fit = channels**3 // 3 + 4 * channels**2 * size + 6 * channels * size**2 + 2 * channels**2 * size + 2 * size**3
        return sum(fit + 2 * row * size * channels for row in rows)

    @property
    def preparation(self) -> dict[str, int]:
        tokens, length = self._calibration_ids.numel(), self._calibration_ids.shape[1]
        config = self.supernet.full_config
        return {
            "tokens": tokens,
            "flops": tokens * (flops_per_token(config, sequence_length=length) + self._moments.flops_per_token),
        }

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "ridge": self.ridge, "calibration_data": fingerprint(self._calibration_ids)}


class SupernetMoments:
    """Second moments of what a super-network computes: of normalised streams, and of what its layers write.

    Memory is that of a square matrix of all heads' channels and neurons for each layer, and of one of these by the
    channels for each pair of layers; it does not depend on the number of tokens.

    Args:
        supernet (`SuperNetModel`): the super-network.
        input_ids (`torch.Tensor`): `(blocks, block_size)`.
        batch_size (`int`): blocks at a time.
        progress (`bool`): whether to show a progress bar.
    """

    def __init__(self, supernet: "SuperNetModel", input_ids: torch.Tensor, batch_size: int, progress: bool):
        self._config = supernet.full_config
        self._check_memory(supernet.device, min(batch_size, len(input_ids)) * input_ids.shape[1])
        self._groups = projections(self._config)
        self._readers = tuple(weight for group in self._groups for weight in group.readers)
        self._writers = tuple(weight for group in self._groups for weight in group.writers)
        self._head = output_matrix(self._config)
        self._normal: dict[tuple[str | None, int], Any] = defaultdict(float)  # of n and 1, by norm and layer
        self._features: dict[int, Any] = defaultdict(float)
        self._written: dict[tuple[int, int], Any] = defaultdict(float)  # by a later layer, with a layer's features
        self._written_before: dict[int, Any] = defaultdict(float)  # by all earlier layers, with a layer's features
        self._from_embedding: dict[tuple[str | None, int], Any] = defaultdict(float)  # of n with that of the embedding
        with evaluating(supernet), torch.no_grad():
            for batch in tqdm(input_ids.split(batch_size), "moments", unit="batch", disable=not progress):
                self._add(supernet, batch.to(supernet.device))

    @property
    def _layers(self) -> range:
        return range(self._config.num_hidden_layers)

    @property
    def _widths(self) -> list[int]:
        """For each layer, the inputs of all its writers, and 1."""
        features = writer_features(self._config, Shape.from_config(self._config))
        return [sum(groups) - len(groups) + 1 for groups in features]

    @property
    def _products_of_writers(self) -> int:
        """Products of two numbers that are summed over tokens for the writers: numbers held, and half the FLOPs."""
        size, layers = self._config.hidden_size, len(self._layers)
        return sum(width**2 + width * size * (layers - layer + 1) for layer, width in enumerate(self._widths))

    @property
    def bytes(self) -> int:
        """Memory it takes, in single precision."""
        return 4 * (self._products_of_writers + 4 * self._config.hidden_size**2 * (len(self._layers) + 1))

    def _check_memory(self, device: torch.device, tokens: int) -> None:
        wide = sum(self._widths)
        states = wide + 5 * self._config.hidden_size * len(self._layers)
        needed = self.bytes + 4 * tokens * states  # with those of a batch
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if needed > free:
            raise WhittleError(
                f"healed perplexity needs {needed / 1e9:.1f} GB for moments of this super-network, and "
                f"{free / 1e9:.1f} GB are free on {device}; search by perplexity, with a smaller batch_size, or where "
                "there is more memory"
            )

    @property
    def flops_per_token(self) -> int:
        """FLOPs of gathering."""
        norms = len({weight.norm for weight in self._readers}) * len(self._layers) + 1
        return 2 * self._products_of_writers + 4 * self._config.hidden_size**2 * norms

    def _norms(self) -> Iterable[tuple[str | None, int]]:
        """The norms that are read through, with their layer; those outside of layers count to the last."""
        yield from dict.fromkeys((weight.norm, layer) for weight in self._readers for layer in self._layers)
        if self._head is not None:
            yield self._head.norm, self._layers[-1]

    def _add(self, supernet: "SuperNetModel", batch: torch.Tensor) -> None:
        seen: dict[str, torch.Tensor] = {}  # what goes into norms, writers and layers
        after: dict[str, torch.Tensor] = {}  # what comes out of layers

        def watch(name: str) -> Any:
            def keep(module: Any, arguments: Any, output: Any) -> None:
                seen[name] = arguments[0].float()
                if name in of_layers:
                    after[name] = (output[0] if isinstance(output, tuple) else output).float()

            return keep

        layers = get_architecture(self._config).layers
        of_layers = [f"{layers}.{layer}" for layer in self._layers]
        names = of_layers + [str(norm).format(layer=layer) for norm, layer in self._norms()]
        names += [module_of(weight, layer) for weight in self._writers for layer in self._layers]
        with ExitStack() as hooks:
            for name in names:
                hooks.callback(supernet.get_submodule(name).register_forward_hook(watch(name)).remove)
            supernet.base_model(input_ids=batch, use_cache=False)
        embedded = seen[f"{layers}.0"]
        for norm, layer in self._norms():
            name = str(norm).format(layer=layer)
            eps = cast(float, supernet.get_submodule(name).eps)
            first, normal = (_with_one(F.layer_norm(x, x.shape[-1:], eps=eps)) for x in (embedded, seen[name]))
            self._normal[norm, layer] += normal.T @ normal
            self._from_embedding[norm, layer] += normal.T @ first
        written = []
        for layer in self._layers:
            before, stream = seen[f"{layers}.{layer}"], after[f"{layers}.{layer}"]
            if not torch.isfinite(stream).all():
                raise HealingError(
                    f"the super-network computes values that are not finite in layer {layer}; use a checkpoint whose "
                    "weights are whole"
                )
            written.append((stream - before).flatten(0, -2))
        for layer in self._layers:
            inputs = [seen[module_of(weight, layer)] for weight in self._writers]
            features = _with_one(torch.cat(inputs, -1))
            self._features[layer] += features.T @ features
            before = (seen[f"{layers}.{layer}"] - embedded).flatten(0, -2)
            self._written_before[layer] += before.T @ features
            for later in self._layers[layer:]:
                self._written[layer, later] += written[later].T @ features

    @torch.no_grad()
    def heal(self, supernet: "SuperNetModel", subnet: SubnetConfig, ridge: float) -> Any:
        """The healed student of a subnet, in single precision."""
        config, weights = self._config, supernet.state_dict()
        sliced = slice_weights(weights, config, subnet, dtype=torch.float32)
        student = StudentWeights(weights, config, subnet, sliced, (ridge,), supernet.device)
        if student.can_change_basis:
            student.change_basis(self._gram_of(subnet))
        for position, layer in enumerate(subnet.layers):
            for number, group in enumerate(self._groups):
                for weight in group.readers:
                    student.heal_reader(weight, position, self._of_reader(student, weight, position, layer))
                moments = self._of_writers(student, subnet, position, number)
                student.heal_writers(group.writers, position, moments)
        if self._head is not None:
            last = len(subnet.layers) - 1
            student.heal_reader(self._head, last, self._of_reader(student, self._head, last, self._layers[-1]))
        return student_model(config, subnet, student.tensors, torch.float32)

    def _gram_of(self, subnet: SubnetConfig) -> torch.Tensor:
        """Products of channels of the normalised stream where the student reads it."""
        assert self._head is not None
        read = [(self._readers[0].norm, layer) for layer in subnet.layers] + [(self._head.norm, self._layers[-1])]
        return sum((self._normal[key][:-1, :-1] for key in read), torch.zeros((), device=self._normal[read[0]].device))

    def _of_reader(self, student: StudentWeights, weight: Weight, position: int, layer: int) -> Moments:
        """Moments of the student's normalised stream, had it the teacher's in its basis, and the teacher's."""
        down = student.basis.down.double()
        normal, with_target = self._normal[weight.norm, layer], self._normal[weight.norm, layer]
        if position == 0 and layer > 0 and weight.in_layer:  # nothing stands before it but the embedding
            normal, with_target = self._normal[self._readers[0].norm, 0], self._from_embedding[weight.norm, layer]
        normal, with_target = normal.double(), with_target.double()
        scale, shift = (
            student.tensors[f"{weight.norm}.{part}".format(layer=position)].double() for part in ("weight", "bias")
        )
        of_teacher = [student.of_teacher(f"{weight.norm}.{part}", layer).double() for part in ("weight", "bias")]
        centred = down - down.mean(0)
        variance = ((centred @ normal[:-1, :-1]) * centred).sum() / len(down) / normal[-1, -1]
        variance += 1 - normal.diagonal()[:-1].mean() / normal[-1, -1]  # what eps is of a variance, it is of the other
        features = F.pad(torch.cat([scale[:, None] * centred / variance.sqrt(), shift[:, None]], 1), (0, 0, 0, 1))
        features[-1, -1] = 1
        targets = torch.cat([of_teacher[0].diag(), of_teacher[1][:, None]], 1)
        return Moments.known(features @ normal @ features.T, targets @ with_target @ features.T)

    def _of_writers(self, student: StudentWeights, subnet: SubnetConfig, position: int, number: int) -> Moments:
        """Moments of the kept inputs of a group's writers, and of what is left to write for them.

        With the groups before them, which are healed by then, they are to write what these groups of the super-network
        write; the last group of a layer, all that is written until the next kept layer. The first kept layer writes
        what the layers before it wrote, too.
        """
        layer, (*before, group) = subnet.layers[position], self._groups[: number + 1]
        gram, chosen = self._features[layer], self._chosen(student, subnet, position, group.writers)
        if group is self._groups[-1]:
            later = range(layer, layer_after(subnet, position, len(self._layers)))
            written = sum(self._written[layer, other][:, chosen] for other in later)
            if position == 0:
                written = written + self._written_before[layer][:, chosen]
            left = student.basis.down.double() @ written.double()
        else:
            writers = [weight for one in self._groups[: number + 1] for weight in one.writers]
            every = self._chosen(student, SubnetConfig.full(self._config), layer, writers)
            written = student.matrix_of_teacher(writers, layer).double() @ gram[every][:, chosen].double()
            left = student.basis.down.double() @ written
            if position == 0 and layer > 0:
                left += self._share_of_before(student, subnet, chosen) @ gram[chosen][:, chosen].double()
        for other in before:
            others = self._chosen(student, subnet, position, other.writers)
            left -= student.matrix(other.writers, position).double() @ gram[others][:, chosen].double()
        return Moments.known(gram[chosen][:, chosen], left)

    def _share_of_before(self, student: StudentWeights, subnet: SubnetConfig, chosen: torch.Tensor) -> torch.Tensor:
        """What some features are to write of what was written before the first kept layer, fitted with all features."""
        layer = subnet.layers[0]
        every = self._chosen(student, subnet, 0, self._writers)
        written = student.basis.down.double() @ self._written_before[layer][:, every].double()
        moments = Moments.known(self._features[layer][every][:, every], written)
        return moments.fit(torch.zeros_like(written), student.ridges).weight[:, torch.isin(every, chosen)]

    def _chosen(
        self, student: StudentWeights, subnet: SubnetConfig, position: int, weights: Sequence[Weight]
    ) -> torch.Tensor:
        """Which of a layer's features are kept inputs of these writers, and the constant if they have a bias."""
        chosen, first = [], 0
        for weight in self._writers:
            rows = axis_rows(weight.axes[1], subnet, position, head_dim(self._config))
            if weight in weights:
                chosen.append(first + (torch.arange(rows) if isinstance(rows, int) else rows))
            first += student.of_teacher(weight.name, subnet.layers[position]).shape[1]
        if student.biases(weights, 0):
            chosen.append(torch.tensor([first]))
        return torch.cat(chosen).to(student.embedding.device)


def _with_one(states: torch.Tensor) -> torch.Tensor:
    """`(B, T, features)` as `(tokens, features + 1)`; the last feature is 1."""
    return F.pad(states.flatten(0, -2), (0, 1), value=1.0)
