"""USPPipelineMixin: a diffusers pipeline whose one call is shared by all ranks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from diffusers import ConfigMixin, DiffusionPipeline

from dit_usp import launch
from dit_usp.compiled import compile_blocks
from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.graph import When, graph, graph_of
from dit_usp.guidance import Turns
from dit_usp.inject import dealt_calls, mesh_of, parallelize, unparallelize
from dit_usp.mesh import Mesh
from dit_usp.models import find_plan
from dit_usp.pipelines import pixart
from dit_usp.pipelines.agreement import check_arguments, check_first_step
from dit_usp.pipelines.deal import Share, blank, collect, deal
from dit_usp.pipelines.layout import Part, check_layout, default_layout, fewest_heads, may_be_unguided, off, planned, without_cfg
from dit_usp.pipelines.noise import RowsOfBatch, share_noise, swapped
from dit_usp.pipelines.progress import StepBar
from dit_usp.pipelines.table import NO_LATENTS, ONE_A_PROMPT
from dit_usp.places import argument_names, by_name
from dit_usp.signature import PER_PROMPT

_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
_UNCHANGED = object()


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of from_pretrained's options that say where a config lies."""
    return {name: options[name] for name in _HUB_OPTIONS if name in options}


class _ModelConfig(ConfigMixin):
    config_name = "config.json"


class USPPipelineMixin(DiffusionPipeline):
    """Put before a diffusers pipeline class, shares its transformers, its guidance halves and its images over ranks.

    Every rank makes the same calls. The first one returns the pictures, on the others the output's fields are None. The first rank's `generator`
    and `latents` count, the other arguments must be alike. Callbacks run on every rank.

    Attributes:
        mesh: the ranks that share the calls; None until `parallelize`: a plain diffusers pipeline.
        on_stage: told "load", "encode", "denoise", "decode" as they begin.
        on_step: told (step, total) after each step.
    """

    mesh: Mesh | None = None
    on_stage: Callable[[str], Any] = staticmethod(lambda stage: None)
    on_step: Callable[[int, int], Any] = staticmethod(lambda step, total: None)
    _compile: Literal["blocks"] | None = None
    _graph: When = "auto"

    # -- from files, from another pipeline, from components

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        parallel: ParallelConfig | None = None,
        on_stage: Callable[[str], Any] | None = None,
        on_step: Callable[[int, int], Any] | None = None,
        compile: Literal["blocks"] | None = None,
        graph: When = "auto",
        **options: Any,
    ) -> Any:
        """diffusers' from_pretrained, on every rank; then the pipeline is moved to this rank's device and shared.

        Args:
            pretrained_model_name_or_path: a hub id or a local folder.
            parallel: the degrees; None: `ParallelConfig.auto` for the ranks there are (one, if no launcher started this process).
            on_stage, on_step: the attributes of these names, told "load" already.
            compile: "blocks": the transformer's layers by torch.compile: the first picture of a size takes a minute longer, all others are faster.
            graph: replay the transformer's calls as CUDA graphs: "auto" where launching them keeps a GPU waiting, True wherever it can be, False.
            options: diffusers' own. Of `device_map` only "cuda" and "cpu" (default: cuda where there is one). Without `dtype` float32, as in
                diffusers, but for the text encoders too.

        Raises:
            UnsupportedError: a layout that the model cannot take, told by its config.json before the weights are read.
            ValueError: the ranks started are not parallel.world_size.
        """
        if on_stage:
            on_stage("load")
        device_type = _device_type(options.pop("device_map", None))
        index = cls.load_config(pretrained_model_name_or_path, **hub_options(options))
        parts = cls._saved_parts(pretrained_model_name_or_path, index, options)
        parallel = parallel or default_layout(_world_size(), cls._plain_name(), parts, cls._is_guided(index))
        check_layout(parallel, cls._plain_name(), parts)
        mesh = launch.join(parallel, device_type)
        pipe = cls._read(super().from_pretrained, pretrained_model_name_or_path, options, on_stage, on_step, compile, graph)
        return pipe.to(mesh.device).parallelize(mesh)

    @classmethod
    def from_pipe(
        cls,
        pipeline: Any,
        *,
        parallel: ParallelConfig | None = None,
        compile: Literal["blocks"] | None = None,
        graph: When = "auto",
        **options: Any,
    ) -> Any:
        """This class with the components of another pipeline, which it shares: `pipeline`'s transformer is parallelized as well.

        Args:
            pipeline: any diffusers pipeline; a USP one hands on its ranks.
            parallel, compile, graph: as in from_pretrained, unless `pipeline` is shared already: then they are its own.
            options: diffusers' own, but without `dtype` the components keep theirs (diffusers turns them into float32).

        Raises:
            ValueError: `pipeline` is shared by other degrees than `parallel`.
        """
        options.setdefault("dtype", options.pop("torch_dtype", _UNCHANGED))
        pipe: Any = super().from_pipe(pipeline, **options)
        if not (isinstance(pipeline, USPPipelineMixin) and pipeline.mesh):
            pipe._compile, pipe._graph = compile, graph
            return pipe._join(parallel, None)
        if parallel not in (None, pipeline.mesh.config):
            raise ValueError(f"this {type(pipeline).__name__} is shared by {pipeline.mesh.config} already, not by {parallel}.")
        for name in ("on_stage", "on_step", "_compile", "_graph"):
            setattr(pipe, name, getattr(pipeline, name))
        had = set(map(id, pipeline.components.values()))
        for part in pipe.components.values():  # the others stay where they are: an offloaded one may not be moved
            if isinstance(part, torch.nn.Module) and id(part) not in had:
                part.to(pipeline.mesh.device)
        return pipe.parallelize(pipeline.mesh)

    @classmethod
    def _from_single_file(cls, pretrained_model_link_or_path: Any, *, parallel: ParallelConfig | None = None, **options: Any) -> Any:
        """diffusers' from_single_file, on every rank; the other options and the errors are those of from_pretrained, told after the file is read."""
        ours = {name: options.pop(name) for name in ("on_stage", "on_step", "compile", "graph") if name in options}
        (ours.get("on_stage") or cls.on_stage)("load")
        device_type = _device_type(options.pop("device_map", None))
        return cls._read(super().from_single_file, pretrained_model_link_or_path, options, **ours)._join(parallel, device_type)

    @classmethod
    def _read(
        cls,
        load: Callable[..., Any],
        path: Any,
        options: dict[str, Any],
        on_stage: Callable[[str], Any] | None = None,
        on_step: Callable[[int, int], Any] | None = None,
        compile: Literal["blocks"] | None = None,
        graph: When = "auto",
    ) -> Any:
        """The pipeline that diffusers' `load` makes, with what from_pretrained is told beside diffusers' options."""
        options.setdefault("dtype", options.pop("torch_dtype", torch.float32))
        pipe = load(path, **options)
        pipe.on_stage, pipe.on_step = on_stage or cls.on_stage, on_step or cls.on_step
        pipe._compile, pipe._graph = compile, graph
        return pipe

    def _join(self, parallel: ParallelConfig | None, device_type: str | None) -> Any:
        """Move to this rank's device and share the calls over the ranks there are, by a layout that is picked unless one is asked for."""
        name, parts = self._plain_name(), described(self)
        parallel = parallel or default_layout(_world_size(), name, parts, self._is_guided(self.config))
        check_layout(parallel, name, parts)
        mesh = launch.join(parallel, _device_type(device_type))
        return self.to(mesh.device).parallelize(mesh)

    def parallelize(self, mesh: Mesh) -> Any:
        """Share this pipeline's calls over the ranks of `mesh`, in place; for a pipeline built from components. What `mesh` shares already stays so.

        Raises:
            UnsupportedError: a layout that the transformer cannot take.
        """
        check_layout(mesh.config, self._plain_name(), described(self))
        for part in sharded_parts(self):
            if mesh_of(part) is mesh:
                continue
            parallelize(part, mesh)
            if self._compile:
                compile_blocks(part)
            if self._graph and mesh.device.type == "cuda":
                graph(part, mesh, when=self._graph)
        turns = Turns(mesh.cfg, without_cfg(mesh.config, fewest_heads(described(self))))
        for part in sharded_parts(self):
            if dealt := dealt_calls(part):
                dealt.turns = turns
        self.mesh = mesh
        return self

    @classmethod
    def _plain_name(cls) -> str:
        """The name of diffusers' own class."""
        return cls.__name__.removeprefix("USP")

    @classmethod
    def _is_guided(cls, index: Mapping[str, Any]) -> bool:
        """Whether a call of the pipeline with this model_index.json that says nothing of guidance has it: distilled models' have guidance_scale=1."""
        return not (may_be_unguided(index) or off(cls._plain_name(), inspect.signature(cls.__call__).parameters, {}))

    @classmethod
    def _saved_parts(cls, path: Any, index: Mapping[str, Any], options: Mapping[str, Any]) -> list[Part]:
        """What would be loaded: class names and configs of the transformers and ControlNets that have a plan."""
        hub = hub_options(options)
        given = {name: options[name] for name in index if options.get(name) is not None}
        saved = {name: model for name, model in planned(index).items() if name not in given}
        loaded = [(model, _ModelConfig.load_config(path, subfolder=name, **hub)) for name, model in saved.items()]
        return [*loaded, *((type(part).__name__, part.config) for name, part in given.items() if _is_sharded(name, part))]

    # -- what else a diffusers pipeline does

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """diffusers' `to`.

        Raises:
            ValueError: another device than this rank's.
        """
        if kwargs.get("dtype") is _UNCHANGED:
            return self
        for device in (*args, kwargs.get("device")):
            if self.mesh and isinstance(device, (str, int, torch.device)) and not _same(torch.device(device), self.mesh.device):
                raise ValueError(
                    f"this rank computes on {self.mesh.device}; leave out .to({str(device)!r}), or load with device_map='cpu' or 'cuda'."
                )
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """diffusers' own, onto this rank's device."""
        super().enable_model_cpu_offload(gpu_id, self._offload_device(gpu_id, device))

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """diffusers' own, onto this rank's device."""
        super().enable_sequential_cpu_offload(gpu_id, self._offload_device(gpu_id, device))

    def _offload_device(self, gpu_id: int | None, device: Any) -> Any:
        return self.mesh.device if self.mesh and self.mesh.device.type != "cpu" and gpu_id is None and device is None else device

    @contextmanager
    def _plain_transformers(self) -> Iterator[None]:
        """Within it the transformers are diffusers' own, to be taken apart and put together."""
        mesh = self.mesh
        for transformer in sharded_parts(self) if mesh else ():
            unparallelize(transformer)
        try:
            yield
        finally:
            if mesh:
                self.parallelize(mesh)

    def to_json_string(self) -> str:
        """The pipeline's config as diffusers' own class would save it, so that diffusers loads it again."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = config["_class_name"].removeprefix("USP")
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> StepBar:
        """One bar, on the first rank; every rank reports its steps."""
        self.on_stage("denoise")
        options = dict(getattr(self, "_progress_bar_config", {}))
        options["disable"] = options.get("disable", False) or (self.mesh is not None and not self.mesh.is_first)
        return StepBar(iterable, total=total, on_step=self.on_step, on_end=lambda: self.on_stage("decode"), **options)

    # -- the call

    def _share_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `function`, diffusers' __call__ of this pipeline, on all ranks together."""
        arguments = self._bound(function, args, kwargs)
        self.on_stage("encode")
        for part in sharded_parts(self):
            if dealt := dealt_calls(part):
                if "_orig_mod" in dict(part.named_children()):  # what it traces is both calls, on every rank
                    raise UnsupportedError(
                        "cfg_degree=2 gives the two calls of guidance to different ranks, but torch.compile around "
                        f"{type(dealt.module).__name__} has every rank compute both. Compile it in place: transformer.compile(), or compile='blocks'."
                    )
                dealt.begin()
            if graphed := graph_of(part):
                graphed.begin(paused="a callback may change the model between its steps" if arguments.get("callback_on_step_end") else "")
        with ExitStack() as stack:
            for inner in vars(self).values():  # VisualCloze is two pipelines of the same models
                if isinstance(inner, DiffusionPipeline):
                    stack.enter_context(swapped(inner, "progress_bar", self.progress_bar))
            if self.mesh is None or self.mesh.config.world_size == 1:
                return function(self, **arguments)
            check_arguments(arguments, self.mesh)
            self._check_guidance(function, arguments)
            arguments = share_noise(arguments, self.mesh)
            if self.mesh.data.size() > 1:
                return self._call_on_replicas(function, arguments)
            output = self._call_replica(function, arguments)
            return output if self.mesh.is_first else blank(output)

    def _bound(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments given, by name."""
        signature = inspect.signature(function)
        arguments = signature.bind(self, *args, **kwargs).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        arguments.pop("self")
        return pixart.prepare_call(self, arguments) if type(self.transformer).__name__ == "PixArtTransformer2DModel" else arguments

    def _check_guidance(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        assert self.mesh
        if self.mesh.cfg.size() == 1:
            return
        if reason := off(self._plain_name(), inspect.signature(function).parameters, arguments):
            cause, remedy = reason
            raise UnsupportedError(
                f"cfg_degree=2 shares the two halves of guidance, which {cause} switches off. "
                f"Try {remedy}, or {without_cfg(self.mesh.config, fewest_heads(described(self)))}."
            )

    def _call_on_replicas(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Each replica makes its images; the first rank gets them all."""
        assert self.mesh
        one = self._plain_name() in ONE_A_PROMPT
        per_prompt = None if one else next((name for name in PER_PROMPT if name in inspect.signature(function).parameters), None)
        share = deal(arguments, self.mesh, per_prompt)
        output, failure = None, None
        try:
            if share.rows:
                output = self._call_share(function, share)
        except Exception as error:
            failure = error
        output, states = collect(output, failure, share, self.mesh)
        for row, state in states:
            arguments["generator"][row].set_state(state)  # as far on as on one process
        return output

    def _call_share(self, function: Callable[..., Any], share: Share) -> Any:
        rows = RowsOfBatch(share.rows, share.total, share.generators)
        with rows, rows.paused_in(sharded_parts(self)):
            return self._call_replica(function, share.arguments)

    def _call_replica(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """diffusers' call on the ranks of one replica, of which the first decodes, or all where diffusers decodes whatever it is asked for."""
        assert self.mesh
        if (self.mesh.sequence.rank() or self.mesh.cfg.rank()) and self._plain_name() not in NO_LATENTS and _knows_latents(function):
            arguments = {**arguments, "output_type": "latent"}
        with self._checked_at_first_step():
            return function(self, **arguments)

    @contextmanager
    def _checked_at_first_step(self) -> Iterator[None]:
        """The first call of a transformer or ControlNet compares its inputs over the replica's ranks."""
        mesh = self.mesh
        with ExitStack() as hooks:

            def check(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hooks.close()
                check_first_step(by_name(argument_names(module), args, kwargs), mesh)

            for part in sharded_parts(self) if mesh and mesh.sequence.size() * mesh.cfg.size() > 1 else ():
                if outermost := dealt_calls(part) or graph_of(part):
                    outermost.before = partial(check, part)
                    hooks.callback(setattr, outermost, "before", None)
                elif part._compiled_call_impl is None:  # compiled as a whole in place it has its hooks in the graph, where ranks cannot be compared
                    hooks.callback(part.register_forward_pre_hook(check, with_kwargs=True, prepend=True).remove)
            yield


def sharded_parts(pipe: DiffusionPipeline) -> list[Any]:
    """The transformers and ControlNets of a pipeline that have a shard plan, whatever their names; those of a MultiControlNet one by one."""
    parts = [(name, net) for name, part in pipe.components.items() for net in getattr(part, "nets", [part])]
    return list(dict.fromkeys(part for name, part in parts if _is_sharded(name, part)))  # a net may follow two pictures


def _is_sharded(name: str, part: Any) -> bool:
    """A transformer without a plan is one too: it has a `_cp_plan` or is refused."""
    return isinstance(part, torch.nn.Module) and (name == "transformer" or any(find_plan(cls.__name__) for cls in type(part).__mro__))


def described(pipe: DiffusionPipeline) -> list[Part]:
    """Class names and configs of the parts that are sharded."""
    return [(type(part).__name__, part.config) for part in sharded_parts(pipe)]


def _knows_latents(function: Callable[..., Any]) -> bool:
    """Whether diffusers' call compares its output_type with "latent"."""
    return "latent" in inspect.unwrap(function).__code__.co_consts


def _world_size() -> int:
    here = launch.place()
    return dist.get_world_size() if dist.is_initialized() else here.world_size if here else 1


def _device_type(device_map: str | None) -> str | None:
    """The kind of device to compute on: what the user says, else what the ranks have joined for; None: launch decides."""
    if device_map not in (None, "cuda", "cpu"):
        raise ValueError(f"device_map={device_map!r} would spread one rank over devices; each rank has its own. Use 'cuda', 'cpu', or leave it out.")
    if device_map is None and dist.is_initialized():
        return "cuda" if "nccl" in dist.get_backend_config() else "cpu"
    return device_map


def _same(device: torch.device, own: torch.device) -> bool:
    return device.type == own.type and device.index in (None, own.index)
