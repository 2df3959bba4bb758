"""Campaigns of faults against a whole cart, and what it then has lost, assessed twice or altered.

A console sends drawn images until each is acknowledged, a scripted PACS keeps count of what
arrives, and something fails between them, again and again. `run` is where it begins.

| module | what it does |
| --- | --- |
| `images` | images that are cheap to draw and to assess |
| `console` | sends images, each until it is acknowledged |
| `pacs` | takes objects, or answers as a campaign says; a process of its own |
| `clinic` | console, cart and PACS together; the cart can be ended and started again |
| `paths` | where its processes find their modules |
| `audit` | the counts: what was lost, assessed twice, altered |
| `kill` | SIGKILL at random moments |
| `power`, `disks` | power cuts, as the shutdown of a file system; the same without fsync |
| `destination` | a PACS that is frozen, killed, or answers otherwise |
| `network` | connections that are cut, reset or stalled on either side |
| `full` | a disk that fills |
| `clock` | a clock that jumps |
| `soak`, `throughput` | memory over thousands of images; speed beside DCMTK's receiver |
| `serving` | the server: records on real images, speed, many requests beside hostile ones |
| `latency` | from the answer to the console to the last object in Orthanc |
"""
