"""Usage events of a platform with 500 skewed tenants and 20 models, as fast as Kafka takes them.

python -m tests.benchmarks.traffic TOPIC COUNT RATE TENANTS    with a rate: prints when every 1,000th was produced,
and every 100th of the first tenant
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings

TENANTS = tuple(f"tenant_{number:03d}" for number in range(500))
MODELS = tuple(f"model-{number:02d}" for number in range(20))
REPLICAS = 40  # two for each model: an engine serves one
STAMPED_EVERY = 1000
OF_ONE_STAMPED_EVERY = 100
BURST_S = 0.05
TEMPLATE = (
    '{{"tenant_id":"{tenant}","request_id":"{request}","model":"{model}","input_tokens":{input},"output_tokens":{output},'
    '"cache_hit_tokens":{cached},"region":"us-east","tier":"paid","duration_ms":{duration},"gpu_us":{gpu},'
    '"timestamp":"{timestamp}","replica_id":"r{replica}","boot_id":"b{boot}","seq":{seq}}}'
)


def tenant_weights() -> list[float]:
    """Ten tenants make 80 %, two hundred 19 %, the rest 1 %."""
    return [0.08] * 10 + [0.19 / 200] * 200 + [0.01 / 290] * 290


def events(count: int, seed: int, tenants: int = len(TENANTS)) -> Iterator[tuple[bytes, bytes]]:
    """(key, message) of so many events of 40 replicas, about 350 bytes each, with UUIDv7 ids in order of time."""
    dice = random.Random(seed)
    drawn = dice.choices(TENANTS[:tenants], tenant_weights()[:tenants], k=100_000)
    timestamp, minted = "", 0
    for number in range(count):
        if number % 500 == 0:
            now = time.time()
            timestamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            minted = int(now * 1000)
        tenant, bits = drawn[number % 100_000], dice.getrandbits(72)
        request = uuid7_text(minted, number, bits)
        yield tenant.encode(), TEMPLATE.format(
            tenant=tenant, request=request, model=MODELS[number % 20], input=bits % 3000 + 100, output=bits % 700 + 1,
            cached=bits % 100, duration=bits % 9000, gpu=bits % 500_000, timestamp=timestamp,
            replica=number % REPLICAS, boot=seed, seq=number // REPLICAS + 1,
        ).encode()  # fmt: skip


def uuid7_text(milliseconds: int, counter: int, bits: int) -> str:
    """A UUIDv7: time, then a counter, then random bits."""
    head = f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{counter % 4096:03x}"
    return f"{head}-{0x8000 | bits >> 58 & 0x3FFF:04x}-{bits & 0xFFFFFFFFFFFF:012x}"


def delays_ms(stamped: Iterable[str], visible: Iterable[tuple[float, Mapping[int, int]]]) -> list[float]:
    """From produced to visible: `stamped` are the lines that `main` prints, `visible` the next positions over time."""
    seen, delays = list(visible), []
    for line in stamped:
        partition, offset, produced_at = line.split()
        if partition == "first":
            continue
        at = next(at for at, positions in seen if positions.get(int(partition), 0) > int(offset))
        delays.append((at - float(produced_at)) * 1000)
    return delays


def delays_of_first_ms(stamped: Iterable[str], counted: Iterable[tuple[float, int]]) -> list[float]:
    """From produced to counted, of the first tenant's: `counted` says over time how many of them are."""
    seen, delays = list(counted), []
    for line in stamped:
        kind, how_many, produced_at = line.split()
        if kind == "first":
            at = next(at for at, count in seen if count >= int(how_many))
            delays.append((at - float(produced_at)) * 1000)
    return delays


def main() -> None:
    """Produce; with a rate that is not 0, evenly, printing `partition offset seconds` of stamped messages, and `first
    how-many-th seconds` of the first tenant's.
    """
    topic, count, rate, tenants = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    producer = EventProducer(KafkaSettings.from_environment(), topic)
    begun, of_first, first = time.monotonic(), 0, TENANTS[0].encode()
    for number, (key, message) in enumerate(events(count, time.time_ns(), tenants)):  # a boot of its own
        if rate and (ahead := number / rate - (time.monotonic() - begun)) > BURST_S:
            time.sleep(ahead)
        of_first += key == first
        if rate and key == first and of_first % OF_ONE_STAMPED_EVERY == 0:
            producer.send(key, message, told=_stamp_first(of_first, time.time()))
        elif rate and number % STAMPED_EVERY == 0:
            producer.send(key, message, told=_stamp(time.time()))
        else:
            producer.send(key, message)
    producer.flush()


def _stamp(produced_at: float) -> Callable[[int, int], None]:
    return lambda partition, offset: print(partition, offset, produced_at, flush=True)


def _stamp_first(how_many: int, produced_at: float) -> Callable[[int, int], None]:
    return lambda partition, offset: print("first", how_many, produced_at, flush=True)


if __name__ == "__main__":
    main()
