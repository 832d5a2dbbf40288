"""The cases of check-faults: functions whose first line of documentation says what they show."""

from . import clocks, crashes, identity, limits

CASES = {
    "kill": crashes.kill,
    "crash": crashes.crash,
    "pause": crashes.pause,
    "clock": clocks.minute,
    "hour": clocks.hour,
    "ports": identity.ports,
    "refusals": identity.refusals,
    "seeds": identity.seeds,
    "slow": limits.slow,
    "memory": limits.memory,
    "million": limits.million,
}
