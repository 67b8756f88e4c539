"""The schemas of KubeRay's resources, as its operator installs them in Kubernetes.

`kuberay_schemas.json.xz` holds the `openAPIV3Schema` of version v1 of RayCluster and RayJob, whole and
unchanged, by kind: from `helm-chart/kuberay-operator/crds/ray.io_{rayclusters,rayjobs}.yaml` of
https://github.com/ray-project/kuberay at v1.7.0 (59d663aeec13760646da3db9c1cf8cfe883e30b7), Apache License
2.0, Copyright The KubeRay Authors. In YAML they are 2.3 MB.

Kubernetes' rules in CEL (`x-kubernetes-validations`) are not evaluated, nor what the operator checks in Go.
"""

import json
import lzma
from pathlib import Path

from jsonschema import Draft202012Validator

#: Kubernetes' own, which a resource's schema does not repeat.
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
}


def validator(kind):
    """Refuses what Kubernetes would refuse, and fields that it does not know, as `kubectl` does."""
    packed = Path(__file__).with_name("kuberay_schemas.json.xz").read_bytes()
    schema = json.loads(lzma.decompress(packed))[kind]
    schema["properties"] |= {
        "metadata": METADATA,
        "kind": {"const": kind},
        "apiVersion": {"const": "ray.io/v1"},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator(strict(schema))


def strict(schema):
    """The same, with fields that are not named refused wherever any are."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner
