# SPDX-License-Identifier: GPL-2.0
# Judge figures and write the tables: awk -v ... -f bench/report.awk FILE.tsv...
# A file is named by its base name: private, private-2, base, patched, contend. Which of them are there says what is
# judged. mode=verdict prints "ok|FAIL|skip  claim"; mode=table prints Markdown; mode=bars and mode=sizes the data
# of the plots.

BEGIN {
	FS = "\t"
	n_stores = split("guest_memfd shmem-huge shmem-4K hugetlb-2M hugetlb-1G shared-THP shared-4K", stores, " ")
	peer = "guest_memfd"
	AGREE = 0.005
}

FNR == 1 {
	file = FILENAME
	sub(/.*\//, "", file)
	sub(/\.tsv$/, "", file)
	there[file] = 1
}

{
	if (!((file, $1) in unit))
		order[file, ++n[file]] = $1
	unit[file, $1] = $3
	if ($4 != "-")
		value[file, $1, $2] = $4
}

function has(f, step, store) { return (f, step, store) in value }
function get(f, step, store) { return value[f, step, store] }

function verdict(status, text) {
	printf "%-4s  %s\n", status, text
	count[status]++
}

function judge(good, text) { verdict(good ? "ok" : "FAIL", text) }

# A step of a store against the peer's.
function claim(step, store, limit, what, f,    r) {
	if (f == "")
		f = "private"
	if (!has(f, step, store) || !has(f, step, peer))
		verdict("skip", what " (" store "): not measured here")
	else {
		r = get(f, step, store) / get(f, step, peer)
		judge(r <= limit, sprintf("%s (%s): %.3f of guest_memfd's, want <= %.2f", what, store, r, limit))
	}
}

# The same for a step of which the most is zeroing @zeroed bytes, an instruction each, that no store gets around. The
# limit is from a kernel optimised for size, where all but zeroing takes the peer longer; between @limit and @zeroing,
# what zeroing is there, is what may come on top of it on the other kernel.
function claim_zeroed(step, store, limit, zeroing, what, zeroed,    p) {
	claim(step, store, limit, what ", kernel optimised for size", "small")
	if (!has("private", step, store) || !has("private", step, peer))
		return
	p = get("private", step, peer)
	judge(get("private", step, store) - zeroed <= (limit - zeroing) * p,
		sprintf("%s (%s): %.3f of guest_memfd's, of which zeroing is %.3f; want <= %.3f on top", what, store,
			get("private", step, store) / p, zeroed / p, limit - zeroing))
}

# The most of something a store may need, absolute; without the zeroing of @zeroed bytes.
function bound(step, store, limit, what, zeroed,    v) {
	if (!has("private", step, store)) {
		verdict("skip", what " (" store "): not measured here")
		return
	}
	v = get("private", step, store) - zeroed
	judge(v <= limit, sprintf("%s (%s): %.6g, want <= %.6g", what, store, v, limit))
}

function instructions(u) { return u == "page" || u == "conversion" || u == "instruction" }

# Steps that end with the same memory in both: what guest_memfd puts off to the touch is no step it is faster at.
function comparable(step) {
	return step !~ /^((slots|files)@[0-9]+-)?(start(@.*|-.*)?|(first|convert|mixed)-[0-9]+[KMG])$/
}

function no_step_slower(store, all, what,    i, step, r, worst, which, slower, list) {
	worst = 0
	for (i = 1; i <= n["private"]; i++) {
		step = order["private", i]
		if (!instructions(unit["private", step]) || step ~ /\.to-/ || (!all && !comparable(step)) ||
		    !has("private", step, store) || !get("private", step, peer))
			continue
		r = get("private", step, store) / get("private", step, peer)
		if (r > worst) { worst = r; which = step }
		if (r > 1 + AGREE) { slower++; list = list (list == "" ? "" : ", ") step sprintf(" %.3f", r) }
	}
	if (which == "")
		verdict("skip", what ": not measured here")
	else
		judge(!slower, sprintf("%s: the most is %.3f, %s%s", what, worst, which,
			slower > 1 ? "; slower: " list : ""))
}

function two_runs(    i, s, step, a, b, d, worst, which, differ, list) {
	if (!there["private-2"])
		return
	for (i = 1; i <= n["private"]; i++)
		for (s = 1; s <= n_stores; s++) {
			step = order["private", i]
			if (!has("private", step, stores[s]))
				continue
			a = get("private", step, stores[s])
			b = get("private-2", step, stores[s])
			d = a == b ? 0 : (a > b ? a - b : b - a) / (a > b ? a : b)
			if (d > worst) { worst = d; which = step " " stores[s] }
			if (d > AGREE) { differ++; list = list (list == "" ? "" : ", ") step " " stores[s] sprintf(" %.2f %%", 100 * d) }
		}
	judge(!differ, sprintf("two runs agree within 0.5 %% on every figure: the most is %.3f %%, %s%s", 100 * worst, which,
		differ ? "; not: " list : ""))
}

function patched_against_base(    i, step, r, sum_base, sum_patched) {
	if (!there["base"])
		return
	for (i = 1; i <= n["base"]; i++) {
		step = order["base", i]
		r = get("patched", step, "kernel") / get("base", step, "kernel")
		judge(r <= 1.01, sprintf("patched against base, %s: %.4f, want <= 1.01", step, r))
		sum_base += get("base", step, "kernel")
		sum_patched += get("patched", step, "kernel")
	}
	judge(sum_patched <= 1.002 * sum_base,
		sprintf("patched against base, sum of all: %.5f, want <= 1.002", sum_patched / sum_base))
}

function verdicts() {
	claim_zeroed("start+touch", "shmem-huge", 0.42, 0.39, "make private and first touch", 4096)
	claim_zeroed("start+touch", "hugetlb-2M", 0.42, 0.39, "make private and first touch", 4096)
	claim_zeroed("start+touch", "hugetlb-1G", 0.42, 0.39, "make private and first touch", 4096)
	bound("faults", "shmem-huge", 512, "exits per GiB, 1 for 2 MiB")
	bound("faults", "hugetlb-2M", 512, "exits per GiB, 1 for 2 MiB")
	bound("faults", "hugetlb-1G", 1, "exits per GiB, 1 for 1 GiB")
	claim("convert-4K", "shmem-huge", 0.33, "4 KiB to shared and back")
	claim("first-4K", "shmem-huge", 1, "4 KiB to shared and back, its huge page in one piece")
	claim("mixed-4K", "shmem-huge", 1, "4 KiB to shared and back, neighbours mixed")
	claim_zeroed("convert-2M+touch", "shmem-huge", 0.35, 0.31, "2 MiB to shared, back and touched", 2097152)
	claim_zeroed("convert-2M+touch", "hugetlb-2M", 0.35, 0.31, "2 MiB to shared, back and touched", 2097152)
	no_step_slower("shmem-4K", 0, "no step of shmem-4K that leaves the same memory behind is slower than guest_memfd's")
	no_step_slower("shmem-4K", 1, "no step of shmem-4K is slower, with those after which guest_memfd has not allocated yet")
	# What 2 MiB cost to make private is at most what 32 pages cost guest_memfd, which does not allocate them.
	if (has("private", "start", peer)) {
		bound("start", "shmem-huge", get("private", "start", peer) / 16,
			"start-up is work per 2 MiB: instructions per 4 KiB")
		bound("start", "hugetlb-2M", get("private", "start", peer) / 16,
			"start-up is work per 2 MiB: instructions per 4 KiB beyond zeroing", 4096)
	}
	bound("memory-start", "shmem-huge", 0.05, "bookkeeping beyond the page cache, bytes per page")
	bound("memory-start", "shmem-4K", 0.05, "bookkeeping beyond the page cache, bytes per page")
	two_runs()
	patched_against_base()
	printf "%d passed, %d failed, %d skipped\n", count["ok"], count["FAIL"], count["skip"]
	exit count["FAIL"] > 0
}

function number(v) { return v >= 1000 ? sprintf("%.0f", v) : sprintf("%.4g", v) }

function cell(f, step, store,    v) {
	if (!has(f, step, store))
		return "n/a"
	v = number(get(f, step, store))
	if (store != peer && get(f, step, peer) > 0)
		v = v sprintf(" (%.2f)", get(f, step, store) / get(f, step, peer))
	return v
}

function by_store(f,    i, s, line) {
	line = "| step | per |"
	for (s = 1; s <= n_stores; s++)
		line = line " " stores[s] " |"
	print line
	print "|---|---|---:|---:|---:|---:|---:|---:|---:|"
	for (i = 1; i <= n[f]; i++) {
		line = "| " order[f, i] " | " unit[f, order[f, i]] " |"
		for (s = 1; s <= n_stores; s++)
			line = line " " cell(f, order[f, i], stores[s]) " |"
		print line
	}
}

function tables(    i, step) {
	print "## Private memory\n"
	by_store("private")
	if (there["contend"]) {
		print "\n## Several vCPUs (medians over alternating turns, by the clock)\n"
		by_store("contend")
	}
	if (!there["base"])
		return
	print "\n## Patched against base\n"
	print "| workload | base | patched | ratio |\n|---|---:|---:|---:|"
	for (i = 1; i <= n["base"]; i++) {
		step = order["base", i]
		printf "| %s | %d | %d | %.4f |\n", step, get("base", step, "kernel"), get("patched", step, "kernel"),
			get("patched", step, "kernel") / get("base", step, "kernel")
	}
}

function plain(step, store) { return has("private", step, store) ? get("private", step, store) : "-" }

function relative(step, store) {
	if (!has("private", step, store) || !get("private", step, peer))
		return "-"
	return get("private", step, store) / get("private", step, peer)
}

function bars(    i, s, m, steps, line) {
	m = split("start touch start+touch prefault convert-4K first-4K convert-64K convert-2M+touch", steps, " ")
	for (i = 1; i <= m; i++) {
		line = steps[i]
		for (s = 1; s <= n_stores; s++)
			line = line "\t" relative(steps[i], stores[s])
		print line
	}
}

function sizes(    i, s, m, mib, names, line) {
	m = split("64M 256M 1G 4G", names, " ")
	split("64 256 1024 4096", mib, " ")
	for (i = 1; i <= m; i++) {
		line = mib[i]
		for (s = 1; s <= n_stores; s++)
			line = line "\t" plain("start+touch@" names[i], stores[s])
		print line
	}
}

END {
	if (mode == "verdict")
		verdicts()
	else if (mode == "table")
		tables()
	else if (mode == "bars")
		bars()
	else if (mode == "sizes")
		sizes()
}
