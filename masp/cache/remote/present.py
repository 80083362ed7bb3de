"""What of a cache is at a target already, so that it is not moved again."""

from __future__ import annotations

from masp.cache.remote.cache_files import total_bytes
from masp.cache.remote.place import CacheFile, Place
from masp.cache.remote.same_cache import refuse_other_sidecars
from masp.cache.remote.transfers import Transfers, patiently
from masp.runtime.stop import StopFlag


def missing_files(
    place: Place, parcels: list[list[CacheFile]], is_known: bool, num_threads: int, stop: StopFlag
) -> list[list[CacheFile]]:
    """What of each parcel is not at a target, parcels that are there left out.

    Args:
        place: The target; `look` has been called.
        parcels: Files that travel together, of a shard its tar and its sidecar.
        is_known: Whether a manifest says that what is there belongs to this cache; otherwise the sidecars must.
        num_threads: Files that are examined at the same time.
        stop: Set when the command is to stop.

    Raises:
        StoppedEarly: On request.
        InputError: The target holds sidecars of another cache.
    """
    present = [file for parcel in parcels for file in parcel if file.name in place.sizes]
    held: set[str] = set()
    if present:
        with Transfers("check", total_bytes(present), num_threads, stop) as transfers:

            def check(file: CacheFile) -> bool:
                with transfers.counting() as advance:
                    is_held = patiently(lambda: place.holds(file))
                    advance(file.num_bytes or 0)
                return is_held

            held = {file.name for file, is_held in transfers.each(check, present) if is_held}
        if not is_known:
            sidecars = {parcel[-1].name for parcel in parcels if parcel[0].receipt}
            refuse_other_sidecars(place, [f for f in present if f.name in sidecars and f.name not in held])
    rest = [[file for file in parcel if file.name not in held] for parcel in parcels]
    return [parcel for parcel in rest if parcel]
