"""Client of a Kubernetes API for RayJobs, ConfigMaps and Events, with patience for an API server that is busy."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import kubernetes.watch
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from features.errors import ConfigError
from pipeline.submission.rayjob import GROUP, PLURAL, VERSION

logger = logging.getLogger(__name__)

API_VARIABLE = "COUNTERPOISE_KUBERNETES_API"
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_PAUSES_S = (0.5, 1, 2, 4, 8, 15, 30)
_BUSY = frozenset({429, 500, 502, 503, 504})
_TIMEOUT_S = (5, 30)  # to connect, to read
_MANAGER, _PAGE = "counterpoise", 200


class KubernetesApi:
    """Kubernetes API, as the pod's service account or a person's kubeconfig reaches it.

    The environment variable COUNTERPOISE_KUBERNETES_API names another API without credentials, e.g. `kubectl proxy`.

    Args:
        namespace: Namespace; None: that of the pod or of the kubeconfig's context.

    Raises:
        ConfigError: There is no configuration, or no namespace.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self._log_refused = False
        self._client, found = _connect()
        self.namespace = namespace or found
        if not self.namespace:
            raise ConfigError("no namespace: give --namespace")

    def rayjobs(self, selector: str) -> list[dict[str, Any]]:
        """Return the RayJobs that a label selector chooses, page by page."""
        found: list[dict[str, Any]] = []
        more = ""
        while True:
            query = {"labelSelector": selector, "limit": _PAGE} | ({"continue": more} if more else {})
            page = self._request("GET", self._rayjobs, query)
            found += page["items"]
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    def rayjob(self, name: str) -> dict[str, Any] | None:
        """Return a RayJob; None if there is none of that name."""
        try:
            return self._request("GET", f"{self._rayjobs}/{name}")
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def create_rayjob(self, rayjob: dict[str, Any]) -> bool:
        """Create a RayJob; return False if one of that name exists.

        Creation is what two submitters cannot both do. An apply would write over the other's living job.

        Raises:
            ConfigError: The API server refuses the object; with its reason.
        """
        return self._create(self._rayjobs, rayjob)

    def delete_rayjob(self, name: str) -> None:
        """Delete a RayJob, if it is there."""
        try:
            self._request("DELETE", f"{self._rayjobs}/{name}")
        except ApiException as error:
            if error.status != 404:
                raise

    def create_config_map(self, config_map: dict[str, Any]) -> bool:
        """Create a ConfigMap whose name says its content; return False if it is there.

        Raises:
            ConfigError: The API server refuses the object; with its reason.
        """
        return self._create(f"{self._core}/configmaps", config_map)

    def create_event(self, event: dict[str, Any]) -> bool:
        """Create an Event; return False if one of that name is there.

        Raises:
            ConfigError: The API server refuses the object; with its reason.
        """
        return self._create(f"{self._core}/events", event)

    def service_text(self, service: str, path: str, headers: dict[str, str]) -> str | None:
        """Return the answer of a service in the cluster to a GET, through the API server's proxy; None: no answer."""
        url = f"{self._core}/services/{service}/proxy/{path}"
        try:
            return self._answer("GET", url, {}, None, headers).decode(errors="replace")
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            refused = isinstance(error, ApiException) and error.status in {401, 403}
            if refused and not self._log_refused:
                logger.warning(
                    "the log is not shown, since %s is refused: is RAY_AUTH_TOKEN set, and allowed?", service
                )
            self._log_refused = self._log_refused or refused
            return None

    def changed(self, name: str, version: str, seconds: float) -> None:
        """Wait until a RayJob is another than its resource version, or for some seconds.

        A watch that breaks off is no error: the caller looks at the object again.
        """
        for _ in self._events(name, version, max(1, int(seconds))):
            return

    def _events(self, name: str, version: str, seconds: int) -> Iterator[Any]:
        began = time.monotonic()
        try:
            yield from kubernetes.watch.Watch().stream(
                kubernetes.client.CustomObjectsApi(self._client).list_namespaced_custom_object,
                *(GROUP, VERSION, self.namespace, PLURAL),
                field_selector=f"metadata.name={name}",
                resource_version=version,
                timeout_seconds=seconds,
                _request_timeout=(5, seconds + 5),
            )
        except (ApiException, urllib3.exceptions.HTTPError, json.JSONDecodeError, ValueError) as error:
            logger.debug("the watch of %s broke off: %s", name, error)
            time.sleep(max(0.0, min(1.0, seconds - (time.monotonic() - began))))

    @property
    def _rayjobs(self) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    @property
    def _core(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def _create(self, url: str, content: dict[str, Any]) -> bool:
        try:
            self._request("POST", url, {"fieldManager": _MANAGER, "fieldValidation": "Strict"}, content)
        except ApiException as error:
            if error.status == 409:  # somebody else's, or this one's after an answer that was lost
                return False
            if error.status in {400, 422}:
                what = f"{content['kind']} {content['metadata']['name']}"
                raise ConfigError(f"the API server refuses {what}: {_message(error)}") from error
            raise
        return True

    def _request(self, method: str, url: str, query: dict[str, Any] | None = None, content: Any = None) -> Any:
        """Ask the API; wait and try again while it is busy or away; log in again once."""
        pauses, may_log_in = list(_PAUSES_S), True
        while True:
            try:
                return json.loads(self._answer(method, url, query or {}, content, {}))
            except ApiException as error:
                if error.status == 401 and may_log_in:  # a token that expired
                    may_log_in = False
                    self._client, _ = _connect()
                    continue
                if error.status not in _BUSY or not pauses:
                    raise _explained(error) from error
                asked = (error.headers or {}).get("Retry-After") or ""
                pause = max(pauses.pop(0), float(asked) if asked.isdigit() else 0)
                logger.warning("the Kubernetes API answers %s: trying again in %g s", error.status, pause)
            except urllib3.exceptions.HTTPError as error:
                if not pauses:
                    raise ConnectionError(f"the Kubernetes API does not answer: {error}") from error
                pause = pauses.pop(0)
                logger.warning("the Kubernetes API does not answer: trying again in %g s", pause)
            time.sleep(pause)

    def _answer(self, method: str, url: str, query: dict[str, Any], content: Any, headers: dict[str, str]) -> bytes:
        """Return the body of one answer.

        Raises:
            ApiException: The answer is an error.
            HTTPError: There is no answer (urllib3's).
        """
        sent = {"Accept": "application/json", "Content-Type": "application/json"} | headers
        request = self._client.param_serialize(
            method,
            url,
            query_params=list(query.items()),
            header_params=sent,
            body=content,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request, _request_timeout=_TIMEOUT_S)
        body = answer.read()
        if not 200 <= answer.status < 300:
            error = ApiException(status=answer.status, reason=answer.reason, body=body.decode(errors="replace"))
            error.headers = answer.getheaders()
            raise error
        return body


def _connect() -> tuple[kubernetes.client.ApiClient, str]:
    """Return a client with fresh credentials, and the namespace that they are for."""
    if host := os.environ.get(API_VARIABLE):
        settings = kubernetes.client.Configuration(host=host)
        settings.retries = False
        return kubernetes.client.ApiClient(settings), ""
    settings = kubernetes.client.Configuration()
    try:
        if os.path.exists(NAMESPACE_FILE):
            kubernetes.config.load_incluster_config(client_configuration=settings)
            namespace = Path(NAMESPACE_FILE).read_text().strip()
        else:
            file = os.environ.get("KUBECONFIG")  # the client reads it at its import only
            kubernetes.config.load_kube_config(file, client_configuration=settings)
            _, context = kubernetes.config.list_kube_config_contexts(file)
            namespace = context["context"].get("namespace", "")
    except (ConfigException, OSError) as error:
        raise ConfigError(f"no Kubernetes cluster is configured here ({error}): set KUBECONFIG") from error
    settings.retries = False  # the one layer of retries is above
    return kubernetes.client.ApiClient(settings), namespace


def _message(error: ApiException) -> str:
    try:
        return json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def _explained(error: ApiException) -> Exception:
    if error.status in {401, 403}:
        return ConfigError(f"the Kubernetes API refuses the request ({error.status}): {_message(error)}")
    if error.status == 404 and "page not found" in str(error.body):
        return ConfigError("this cluster does not know RayJobs: install the operator of KubeRay")
    return error
