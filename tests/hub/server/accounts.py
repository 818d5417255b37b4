"""Accounts of the Hub, and the rights of their tokens."""

import re
from dataclasses import dataclass

WRITE, READ, OTHER, FINE = "hf_write_of_me", "hf_read_of_me", "hf_write_of_other", "hf_fine_of_me"


@dataclass(frozen=True)
class Account:
    """Owner and rights of a token; a fine-grained one knows no repository outside its scope."""

    user: str
    role: str
    orgs: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.user, *self.orgs) and (not self.scope or repo_id in self.scope)

    def writes(self, repo_id: str) -> bool:
        return self.owns(repo_id) and self.role != "read"


ACCOUNTS = {
    WRITE: Account("me", "write", ("lab",)),
    READ: Account("me", "read", ("lab",)),
    OTHER: Account("other", "write"),
    FINE: Account("me", "fineGrained", ("lab",), ("me/allowed",)),
}
TOKEN = re.compile("|".join([*ACCOUNTS, "hf_[A-Za-z0-9]{30,}"]))
