"""Which content each version was ever seen with: it must be one content for ever."""

import threading


class Versions:
    """Everything that was seen, from every receipt and every read; safe to use from many threads."""

    def __init__(self):
        self.contents, self.owners, self.wrong = {}, {}, []
        self.lock = threading.Lock()

    def note(self, key, version, content):
        """This key had this content under this version (None: it was deleted)."""
        stamp = version.rsplit("-", 1)[0]
        with self.lock:
            first = self.contents.setdefault((key, version), content)
            if first != content:
                self.wrong.append(f"{key} under {version} was {first!r} and is {content!r}")
            # A stamp is issued once, for one key. Where nothing was there a condition counts up from no stamp at all.
            owner = self.owners.setdefault(stamp, key)
            if owner != key and not stamp.startswith("0" * 16):
                self.wrong.append(f"the stamp {stamp} was issued for {owner} and for {key}")

    def note_read(self, key, answer):
        """What a GET was answered with."""
        if answer.version:
            self.note(key, answer.version, answer.body if answer.status == 200 else None)
