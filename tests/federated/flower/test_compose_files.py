"""The containers of `launch/federation`, checked without Docker."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "launch" / "federation"

SERVICE = {
    *("build", "image", "restart", "stop_grace_period", "command", "environment", "ports", "volumes"),
}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.site.yaml"])
def test_a_compose_file_starts_what_is_there(name: str) -> None:
    """No Docker is needed: keys, scripts, variables and volumes are checked one by one."""
    content = yaml.safe_load((FOLDER / name).read_text())
    named = {key for key in content if not key.startswith("x-")}
    assert named == {"services", "volumes"}
    ports: dict[str, str] = {}
    used = set()
    for service, given in content["services"].items():
        assert given.keys() <= SERVICE, service
        assert (FOLDER / given["build"]["context"] / given["build"]["dockerfile"]).resolve() == FOLDER / "Dockerfile"
        shell, script = given["command"]
        assert shell == "sh"
        local = ROOT / Path(script).relative_to("/syncnorm")
        read = set(re.findall(r"\$\{([A-Z_]+)", local.read_text()))
        environment = given["environment"]
        assert environment.keys() <= read, "the script does not read these"
        needed = set(re.findall(r"\$\{([A-Z_]+):\?", local.read_text()))
        assert needed <= environment.keys(), "the script needs these"
        assert all(isinstance(value, str) for value in environment.values())
        targets = {}
        for volume in given["volumes"]:
            source, target = re.fullmatch(r"(\$\{[^}]+\}|[\w-]+):([^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr]
            targets[target] = source
            used |= set() if source.startswith("$") else {source}
        assert environment["CERTIFICATES"] in targets
        assert any(environment["STATE"].startswith(f"{target}/") for target in targets)
        for port in given.get("ports", []):
            ports[service] = port.split(":")[1]
            assert environment["PORT"] == ports[service]
    for given in content["services"].values():
        link = given["environment"].get("SUPERLINK", "")
        if link and not link.startswith("$"):
            assert ports[link.split(":")[0]] == link.split(":")[1]
    assert used == set(content["volumes"])


def test_the_sites_of_the_compose_file_differ() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    sites = [given["environment"] for name, given in services.items() if name != "superlink"]
    assert [(one["SITE"], one["SITES"]) for one in sites] == [("0", "3"), ("1", "3"), ("2", "3")]
    assert len({volume for given in services.values() for volume in given["volumes"] if "state" in volume}) == 4


def test_the_image_has_what_the_compose_files_start() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert "COPY . /syncnorm" in text
    assert "'/syncnorm[federated]'" in text
    assert "USER federation" in text
