"""Why memory runs out: where a run's goes (`footprint`), and how many processes the kernel has killed for want of it (`kills`)."""
