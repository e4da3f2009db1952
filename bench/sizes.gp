# SPDX-License-Identifier: GPL-2.0
# Make private and first touch, over the size of memory; data: tools/bench (report.awk, mode sizes).
set terminal svg noenhanced size 720,400 font "sans,12" background "white"
set datafile separator "\t"
set datafile missing "-"
set logscale x 2
set xlabel "guest memory, MiB"
set ylabel "instructions per 4 KiB, start and first touch"
set yrange [0:*]
set grid
set key outside top center horizontal
plot data using 1:2 with linespoints title "guest_memfd", \
	"" using 1:3 with linespoints title "shmem-huge", \
	"" using 1:4 with linespoints title "shmem-4K", \
	"" using 1:5 with linespoints title "hugetlb-2M", \
	"" using 1:6 with linespoints title "hugetlb-1G", \
	"" using 1:7 with linespoints title "shared-THP"
