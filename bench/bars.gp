# SPDX-License-Identifier: GPL-2.0
# Steps as bars, relative to guest_memfd; data: tools/bench (report.awk, mode bars).
set terminal svg noenhanced size 960,440 font "sans,12" background "white"
set datafile separator "\t"
set datafile missing "-"
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.8 border -1
set ylabel "instructions, guest_memfd = 1"
set yrange [0:*]
set grid ytics
set key outside top center horizontal
set xtics rotate by -20
plot data using 2:xtic(1) title "guest_memfd", \
	"" using 3 title "shmem-huge", \
	"" using 4 title "shmem-4K", \
	"" using 5 title "hugetlb-2M", \
	"" using 6 title "hugetlb-1G"
