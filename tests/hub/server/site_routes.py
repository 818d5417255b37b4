"""Routes of the site: accounts, the check of cards, collections, repositories made and deleted."""

import re
from typing import TYPE_CHECKING, Any

from .metadata import metadata_errors, read_card
from .protocol import Answer, Call, Refusal, Route, check, now
from .repos import LFS_SUFFIXES, Repo

if TYPE_CHECKING:
    from .hub import HubServer


def whoami(hub: "HubServer", call: Call) -> Any:
    account = call.account
    if not account:
        raise Refusal(401, "Invalid username or password.")
    scoped = [{"entity": {"type": "model", "name": name}, "permissions": ["repo.write"]} for name in account.scope]
    token = {"displayName": "test", "role": account.role, "fineGrained": {"global": [], "scoped": scoped}}
    orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in account.orgs]
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "name": account.user, "orgs": orgs, "auth": auth}


def validate_yaml(hub: "HubServer", call: Call) -> Answer:
    body = call.json()
    check(body["repoType"] in ("model", "dataset", "space"), "an unknown type of repository")
    errors = metadata_errors(body["content"])
    empty = not errors and not read_card(body["content"])
    warnings = ["empty or missing yaml metadata in repo card"] if empty else []
    answer = {"errors": [{"message": error} for error in errors], "warnings": [{"message": w} for w in warnings]}
    plain = call.headers.get("Accept") == "text/plain"
    return Answer("\n".join(errors + warnings).encode() if plain else answer, 400 if errors else 200)


def collection_of(hub: "HubServer", slug: str) -> list[dict[str, Any]]:
    if slug not in hub.collections:
        raise Refusal(404, "Collection not found")
    return hub.collections[slug]


def collection(hub: "HubServer", call: Call, slug: str) -> Any:
    items = collection_of(hub, slug)
    known = {"title": slug, "owner": slug.split("/")[0], "private": False, "theme": "green", "upvotes": 0}
    return {**known, "slug": slug, "items": items, "lastUpdated": now(), "position": 0}


def add_item(hub: "HubServer", call: Call, slug: str) -> Any:
    items = collection_of(hub, slug)
    hub.check_write(call.account, Repo("collection", slug))
    body = call.json()
    named = {key: body["item"][key] for key in ("type", "id")}
    if (named["type"], named["id"]) not in hub.repos:
        raise Refusal(404, "Item not found")
    if any(named.items() <= item.items() for item in items):
        raise Refusal(409, "Item is already in the collection")
    note = {"note": {"text": body["note"]}} if "note" in body else {}
    items.append({"_id": f"{len(items):024x}", **named, "position": len(items), **note})
    return collection(hub, call, slug)


def repo_named_in(call: Call) -> tuple[dict[str, Any], str, str]:
    if not call.account:
        raise Refusal(401, "Invalid username or password.")
    body = call.json()
    return body, body.get("type", "model"), f"{body.get('organization') or call.account.user}/{body['name']}"


def create_repo(hub: "HubServer", call: Call) -> Any:
    body, type, repo_id = repo_named_in(call)
    check(type in ("model", "dataset"), "an unknown type of repository")
    check(re.fullmatch(r"\w([\w.-]{0,94}\w)?", body["name"]), "an invalid name")
    if not call.account.writes(repo_id) or call.account.scope:
        raise Refusal(403, f"You don't have the rights to create a {type} under this namespace")
    url = hub.url + Repo(type, repo_id).path
    if (type, repo_id) in hub.repos:
        message = f"You already created this {type} repo"
        raise Refusal(409, message, body={"error": message, "url": url})
    attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
    private = body.get("visibility") == "private"
    hub.add_repo(repo_id, {".gitattributes": attributes.encode()}, type, private=private)
    return {"url": url, "name": repo_id}


def delete_repo(hub: "HubServer", call: Call) -> Any:
    _, type, repo_id = repo_named_in(call)
    hub.find(call, "write", f"{type}s", repo_id, {})
    del hub.repos[type, repo_id]
    return {}


ROUTES: list[Route] = [  # method, path, rights it needs, function
    ("GET", "/api/whoami-v2", None, whoami),
    ("POST", "/api/validate-yaml", None, validate_yaml),
    ("POST", "/api/repos/create", None, create_repo),
    ("DELETE", "/api/repos/delete", None, delete_repo),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", None, collection),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", None, add_item),
]
