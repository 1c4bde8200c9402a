"""The files in cluster/ and docker/ are valid for Ray, KubeRay and Kubernetes, and their commands for this program.

No cluster is started: files are checked by schemas, by Ray's own parsers and by the settings.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from adagrpo_ray.config import Config
from tests.support.places import ROOT
from tests.support.scripts import script

LAUNCHER = ("on-premise", "aws")
KUBERAY = ("raycluster-cpu", "raycluster-gpu", "rayjob-cpu", "rayjob-gpu")
SCHEMA = json.loads((ROOT / "tests/docs/schemas/kuberay.json").read_text())
KUBERNETES = "1.33"
IMAGE = re.compile(r"(?:[\w.:-]+/)*adagrpo-ray:(cpu|gpu)")


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"cluster/{name}.yaml").read_text())


def kuberay(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"cluster/kuberay/{name}.yaml").read_text())


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


def groups(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec = cluster_spec(manifest)
    return {"head": spec["headGroupSpec"], **{g["groupName"]: g for g in spec["workerGroupSpecs"]}}


def node_types(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The node type that Ray's autoscaler derives from each group."""
    cluster = {"metadata": {**manifest["metadata"], "namespace": "default"}, "spec": cluster_spec(manifest)}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return {("head" if name == "headgroup" else name): kind for name, kind in types.items()}


def check_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def documented() -> list[str]:
    """The training commands in the documents about clusters."""
    texts = ((ROOT / f"docs/{name}.md").read_text().replace("\\\n", " ") for name in ("kubernetes", "launcher"))
    return [line for text in texts for line in re.findall(r"python launch/train\.py .*", text)]


def config_of(command: str) -> Config:
    """The settings of a training command."""
    python, program, *arguments = shlex.split(command)
    assert (python, program) == ("python", "launch/train.py")
    config = arguments[arguments.index("--config") + 1]
    return Config.load(ROOT / config, [a for a in arguments if "=" in a])


# Ray's cluster launcher


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_accepts_the_file(name: str) -> None:
    config = prepare_config(launcher(name))
    validate_config(config)  # raises
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_refuses_a_misspelt_key(name: str) -> None:
    for section, key in ((None, "max_wokers"), ("docker", "imag"), ("auth", "ssh_usr")):
        config = launcher(name)
        (config if section is None else config[section])[key] = "3"
        with pytest.raises(jsonschema.ValidationError, match=key):
            validate_config(prepare_config(config))


def test_aws_nodes_differ_and_rollout_nodes_scale() -> None:
    types = prepare_config(launcher("aws"))["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["rollout"]["resources"] == {"rollout": 1}
    assert types["learner"]["resources"] == {"learner": 4}
    assert types["rollout"]["min_workers"] < types["rollout"]["max_workers"]


def test_on_premise_machines_have_both_resources_for_each_gpu(tmp_path: Path) -> None:
    config = prepare_config(launcher("on-premise"))
    workers = config["available_node_types"][config["head_node_type"]]
    assert workers["min_workers"] == workers["max_workers"] == len(config["provider"]["worker_ips"])
    for name, text in (("nvidia-smi", "echo GPU 0; echo GPU 1"), ("ray", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    shell = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    command = config["worker_start_ray_commands"][-1]
    output = subprocess.run(["bash", "-c", command], env=shell, capture_output=True, text=True, check=True).stdout
    start, address, resources = output.splitlines()
    assert (start, address) == ("start", "--address=10.0.0.1:6379")
    assert json.loads(resources.removeprefix("--resources=")) == {"rollout": 2, "learner": 2}


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_starts_ray_with_a_token_and_a_local_dashboard(name: str) -> None:
    config = launcher(name)
    options = dict(o.removeprefix("-e ").split("=") for o in config["docker"]["run_options"] if o.startswith("-e "))
    assert options["RAY_AUTH_MODE"] == "token"
    assert str(Path(options["RAY_AUTH_TOKEN_PATH"]).parent) in config["file_mounts"]
    assert "RAY_AUTH_TOKEN" not in options  # would be a secret in the file
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


# KubeRay


@pytest.mark.parametrize("name", KUBERAY)
def test_manifest_is_valid_for_kuberay(name: str) -> None:
    assert [
        error.message for error in jsonschema.validators.validator_for(SCHEMA)(SCHEMA).iter_errors(kuberay(name))
    ] == []


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_valid_for_kubernetes(name: str) -> None:
    found = groups(kuberay(name))
    assert {"head", "rollout", "learner"} <= set(found)
    for group in found.values():
        check_pod(group["template"])  # raises


def test_volume_claim_is_valid_and_mounted_by_all_pods() -> None:
    claim = kuberay("pvc")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in KUBERAY:
        for group in groups(kuberay(name)).values():
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("raycluster-cpu", ("spec",)),
        ("raycluster-cpu", ("spec", "authOptions")),
        ("raycluster-cpu", ("spec", "autoscalerOptions")),
        ("raycluster-cpu", ("spec", "headGroupSpec")),
        ("raycluster-cpu", ("spec", "workerGroupSpecs", 0)),
        ("rayjob-cpu", ("spec",)),
        ("rayjob-cpu", ("spec", "rayClusterSpec", "workerGroupSpecs", 1)),
    ],
)
def test_misspelt_kuberay_field_is_refused(name: str, path: tuple[str | int, ...]) -> None:
    manifest = kuberay(name)
    part: Any = manifest
    for step in path:
        part = part[step]
    key = next(iter(part))
    part[f"{key}s"] = part.pop(key)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


def test_misspelt_kubernetes_field_is_refused() -> None:
    template = groups(kuberay("raycluster-gpu"))["learner"]["template"]
    for path, key in (((), "toleration"), (("securityContext",), "runAsNonroot"), (("containers", 0), "volumeMount")):
        broken = copy.deepcopy(template)
        part: Any = broken["spec"]
        for step in path:
            part = part[step]
        part[key] = []
        with pytest.raises(kubernetes_validate.ValidationError, match=key):
            check_pod(broken)
    claim = kuberay("pvc")
    claim["spec"]["accessMode"] = claim["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError, match="accessMode"):
        kubernetes_validate.validate(claim, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_jobs_and_clusters_have_the_same_specification(kind: str) -> None:
    assert cluster_spec(kuberay(f"rayjob-{kind}")) == cluster_spec(kuberay(f"raycluster-{kind}"))


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_unprivileged_and_require_a_token(name: str) -> None:
    manifest = kuberay(name)
    assert cluster_spec(manifest)["authOptions"] == {"mode": "token"}
    for group in groups(manifest).values():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", KUBERAY)
def test_autoscaler_knows_the_resources_of_actors(name: str) -> None:
    types = node_types(kuberay(name))
    gpus = name.endswith("gpu")
    assert types["head"]["resources"]["CPU"] == 0
    assert types["rollout"]["resources"]["rollout"] == 1
    assert types["rollout"]["resources"].get("GPU", 0) == (1 if gpus else 0)
    assert types["learner"]["resources"].get("GPU", 0) == (types["learner"]["resources"]["learner"] if gpus else 0)
    assert types["rollout"]["min_workers"] < types["rollout"]["max_workers"]


# Compose


def test_ui_container_needs_a_password_and_reads_runs_only() -> None:
    services = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())["services"]
    ui = services["ui"]
    assert ui["volumes"] == services["tensorboard"]["volumes"] == ["${RUNS}:/runs:ro"]
    assert ui["ports"] == ["127.0.0.1:7860:7860"]
    assert ui["image"] == services["tensorboard"]["image"] == services["head"]["image"]
    python, program, *arguments = shlex.split(ui["command"])
    assert (python, program) == ("python", "launch/ui.py")
    options = script("ui").parse(arguments)
    assert (options.runs, options.host, options.no_chat) == ("/runs", "0.0.0.0", True)
    assert options.password_file == "/run/secrets/ray_token"
    assert ui["secrets"] == ["ray_token"]
    probe = ui["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-c"]
    assert f"http://127.0.0.1:{options.port}/healthz" in probe[3]


def test_variables_of_the_compose_file_have_defaults() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "docker/docker-compose.yml").read_text()))
    assert used == used & set(re.findall(r"^(\w+)=", (ROOT / "docker/.env").read_text(), re.MULTILINE))


def actors_of(**settings: str) -> dict[str, str]:
    """The settings of a run on the cluster in containers, with these environment variables."""
    command, environment = ROOT / "docker/cluster.sh", {"PATH": os.environ["PATH"], **settings}
    printed = subprocess.run([command, "actors"], env=environment, capture_output=True, text=True, check=True).stdout
    return dict(part.split("=") for part in printed.split())


def test_a_run_in_containers_has_one_actor_for_each_container_or_gpu() -> None:
    assert actors_of() == {"rollout.actors": "2", "learner.ranks": "1"}
    assert actors_of(ROLLOUTS="3") == {"rollout.actors": "3", "learner.ranks": "1"}
    two_gpus = actors_of(COMPOSE_PROFILES="gpu")
    assert two_gpus == {"rollout.actors": "1", "learner.ranks": "1"}
    four_gpus = actors_of(COMPOSE_PROFILES="gpu", ROLLOUT_GPUS="1,3", LEARNER_GPUS="0,2", ROLLOUTS="7")
    assert four_gpus == {"rollout.actors": "2", "learner.ranks": "2"}


def test_containers_on_gpus_have_limits_of_their_own() -> None:
    services = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())["services"]
    defaults = dict(re.findall(r"^(\w+_MEMORY)=(\d+)g$", (ROOT / "docker/.env").read_text(), re.MULTILINE))
    for role in ("rollout", "learner"):
        limits = [services[name]["mem_limit"].strip("${}") for name in (role, f"{role}-gpu")]
        assert limits == [f"{role.upper()}_MEMORY", f"{role.upper()}_GPU_MEMORY"]
        assert int(defaults[limits[1]]) >= 24 > int(defaults[limits[0]])
        assert services[f"{role}-gpu"]["shm_size"] == "8gb"


def test_image_for_gpus_has_the_library_with_which_flashinfer_links() -> None:
    """CUDA_HOME of the last stage is the folder of the links, which an earlier stage makes; no image was ever built."""
    text = (ROOT / "docker/Dockerfile").read_text()
    home = re.search(r"^ *CUDA_HOME=(\S+)$", text, re.MULTILINE)
    assert home is not None
    assert f"RUN cd {home[1]} \\\n    && ln -sfn lib lib64 && ln -sf libcudart.so.13 lib/libcudart.so\n" in text


def test_compiled_kernels_of_containers_are_in_a_volume() -> None:
    """`cluster/environment.py` puts the caches of all compilers into XDG_CACHE_HOME."""
    text = (ROOT / "docker/Dockerfile").read_text()
    compose = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())
    assert re.findall(r"XDG_CACHE_HOME=(\S+)", text) == ["/cache", "/cache"]
    for name in ("head", "rollout", "learner", "rollout-gpu", "learner-gpu"):
        assert "cache:/cache" in compose["services"][name]["volumes"]
    assert "cache" in compose["volumes"]


# Commands in the files


@pytest.mark.parametrize("name", [n for n in KUBERAY if n.startswith("rayjob")])
def test_job_fits_its_cluster(name: str) -> None:
    manifest = kuberay(name)
    config, types = config_of(manifest["spec"]["entrypoint"]), node_types(manifest)
    assert config.run.output_dir == "/runs"
    assert config.rollout.resources == {"rollout": 1}
    assert config.learner.resources == {"learner": 1}
    assert config.rollout.actors <= types["rollout"]["min_workers"]
    assert config.rollout.max_actors == types["rollout"]["max_workers"]
    learner = types["learner"]["resources"]
    assert config.learner.ranks <= learner["learner"]
    assert config.learner.ranks * config.learner.cpus <= learner["CPU"]
    assert config.rollout.cpus <= types["rollout"]["resources"]["CPU"]


@pytest.mark.parametrize("command", documented())
def test_documented_cluster_commands_have_valid_settings(command: str) -> None:
    assert config_of(command).run.output_dir == "/runs"


def test_versions_and_images_match_the_project() -> None:
    pin = re.search(r"^ray==(\S+)$", (ROOT / "requirements/cpu.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert ray.__version__ == pin[1]
    for name in KUBERAY:
        manifest = kuberay(name)
        assert cluster_spec(manifest)["rayVersion"] == pin[1]
        images = {c["image"] for g in groups(manifest).values() for c in g["template"]["spec"]["containers"]}
        assert images == {f"adagrpo-ray:{name.rpartition('-')[2]}"}
    for name in LAUNCHER:
        assert IMAGE.fullmatch(launcher(name)["docker"]["image"])


def test_ports_of_containers_are_published_only_on_loopback() -> None:
    services = yaml.safe_load((ROOT / "docker/docker-compose.yml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
