# SPDX-License-Identifier: GPL-2.0
# Judge one boot of the guest: awk -v ... -f tools/verdict.awk
# Reads plan, report and console of the boot, tests/expected-skips and tests/console-allow (variables of these names).
# Prints "name<TAB>pass|fail|skip<TAB>seconds<TAB>reason" for each test that is over, and "note<TAB>text".
# ended: empty while the guest runs, else how it ended: "done", or the reason why it is lost.
# functions: when set, a file with the names of the functions that data races (KCSAN) are reported of; others are counted.
# logs: when set, write the log of each test into this folder.

function die(text) { print "verdict: " text > "/dev/stderr"; exit 2 }

# "text -- reason" of the two lists.
function entry(line, parts) {
	if (line ~ /^[ \t]*(#|$)/)
		return 0
	if (split(line, parts, / -- /) != 2)
		die("no ' -- reason' in: " line)
	sub(/[ \t]+$/, "", parts[1])
	return 1
}

function read_lists(    line, p, i) {
	while ((getline line < skips) > 0)
		if (entry(line, p)) {
			i = index(p[1], ":")
			skip_test[++n_skips] = i ? substr(p[1], 1, i - 1) : p[1]
			skip_regex[n_skips] = i ? substr(p[1], i + 1) : ""
			skip_reason[n_skips] = p[2]
		}
	while ((getline line < allow) > 0)
		if (entry(line, p))
			allowed[++n_allowed] = p[1]
	while (functions != "" && (getline line < functions) > 0)
		ours[line] = 1
	while ((getline line < plan) > 0) {
		split(line, p, " ")
		order[++n_tests] = p[1]
		needs[p[1]] = p[3]
	}
}

function bad_console(line,    i) {
	if (line !~ BAD)
		return 0
	for (i = 1; i <= n_allowed; i++)
		if (line ~ allowed[i])
			return 0
	return 1
}

# Reports of data races are of many lines, up to a bar: two stacks of "function+0x...". One that has a function of ours in
# it is bad, unless that is only what an interrupt came upon; the title, which says what both sides were doing, stands for it.
function data_race(line, test,    f) {
	if (line ~ /BUG: KCSAN: /) {
		race = line
		race_of = test
		race_is_ours = 0
	} else if (race != "" && line ~ /====================/) {
		end_of_race()
	} else if (race != "" && match(line, / [A-Za-z_][A-Za-z0-9_.]*\+0x/)) {
		f = substr(line, RSTART + 1, RLENGTH - 4)
		if (f ~ /^asm_(sysvec_|common_interrupt)/)
			interrupted = 1
		else if (f in ours && !interrupted)
			race_is_ours = 1
	} else {
		interrupted = 0
	}
}

function end_of_race() {
	if (race != "" && !race_is_ours)
		n_others++
	else if (race != "" && bad_console(race) && !(race_of in finding))
		finding[race_of] = race
	race = ""
}

# What the kernel said, by the test that ran: from its START to the next one's.
function read_console(    line, now) {
	now = "boot"
	while ((getline line < console) > 0) {
		sub(/\r$/, "", line)
		if (line ~ /guest: START [^ ]+$/)
			now = substr(line, index(line, "START ") + 6)
		console_of[now] = console_of[now] line "\n"
		if (line ~ /Kernel panic/)
			panic = line
		if (functions != "")
			data_race(line, now)
		if (!(now in finding) && !(functions != "" && line ~ /BUG: KCSAN: /) && bad_console(line))
			finding[now] = line
		# The first complaint with what follows it: mostly the stack.
		if (functions == "" && now in finding && n_complaint[now]++ < 60)
			complaint_of[now] = complaint_of[now] line "\n"
	}
	end_of_race()
}

function read_report(    line, now, p) {
	while ((getline line < report) > 0) {
		if (line ~ /^\| /) {
			line = substr(line, 3)
			output_of[now] = output_of[now] line "\n"
			tap(now, line)
		} else if (line ~ /^START /) {
			now = substr(line, 7)
			over[last] = 1
			started[now] = 1
			last = now
		} else if (line ~ /^RESULT /) {
			result[now] = line
		} else if (line ~ /^STUCK /) {
			stuck[now] = 1
		} else if (line ~ /^DONE /) {
			over[last] = 1
			all_done = 1
		} else if (line !~ /^BOOT /) {
			garbage[now] = line
		}
	}
}

# Sub-tests: TAP as kselftest and KUnit write it. Indented lines are nested, and count as well.
function tap(test, line) {
	if (line ~ /^[ \t]*1\.\.0 +# *SKIP/ || line ~ /^[ \t]*(not )?ok [0-9]+.*# *SKIP/) {
		sub(/^[ \t]+/, "", line)
		skipped[test, ++n_skipped[test]] = line
	} else if (line ~ /^[ \t]*not ok [0-9]+/ && line !~ /# *TODO/ && !(test in not_ok)) {
		sub(/^[ \t]+/, "", line)
		not_ok[test] = line
	}
	if (line ~ /^1\.\.[0-9]+$/ && !(test in planned))
		planned[test] = substr(line, 4)
	if (line ~ /^(not )?ok [0-9]+/)
		reported[test]++
}

# The entry of expected-skips for a skipped sub-test ("" for the whole test), or 0. A test that soaks skips what it skips else.
function expected(test, line,    i) {
	sub(/^soak_/, "", test)
	for (i = 1; i <= n_skips; i++)
		if (skip_test[i] == test && (skip_regex[i] == "" ? line == "" : line ~ skip_regex[i])) {
			used[i] = 1
			return i
		}
	return 0
}

# Sets status and why of a test that is over.
function judge(test,    r, how, i, e) {
	seconds = "-"
	status = "fail"
	r = result[test]
	if (r == "") {
		if (ended != "" && ended != "done" && test == last)
			why = "lost VM: " (test in finding ? finding[test] : ended)
		else
			why = "no status: it started, and never reported a result"
		return
	}
	if (r !~ /^RESULT [^ ]+ (exit|signal|timeout|needs):[0-9]+ [0-9]+\.[0-9]+$/ || index(r, "RESULT " test " ") != 1) {
		why = "bad status: \"" r "\""
		return
	}
	if (test in garbage) {
		why = "bad status: \"" garbage[test] "\" in the report"
		return
	}
	split(r, r_part, " ")
	seconds = r_part[4]
	how = r_part[3]
	split(how, h, ":")
	if (h[1] == "signal")
		why = "killed by signal " h[2]
	else if (h[1] == "timeout")
		why = "timeout after " h[2] " s"
	else if (h[1] == "needs")
		why = "the guest cannot offer what it needs: " needs[test]
	else if (how == "exit:4") {
		why = n_skipped[test] ? skipped[test, n_skipped[test]] : "exit code 4"
		e = expected(test, "")
		if (e) {
			status = "skip"
			why = skip_reason[e]
		} else
			why = "unlisted skip: " why
	} else if (how == "exit:127")
		why = "exit code 127: not built, or not found"
	else if (how != "exit:0")
		why = "exit code " h[2]
	else if (test in not_ok)
		why = "exit code 0, but: " not_ok[test]
	else if (test in planned && reported[test] + 0 < planned[test] + 0)
		why = "reported " reported[test] + 0 " of " planned[test] " sub-tests"
	else {
		status = "pass"
		why = ""
		for (i = 1; i <= n_skipped[test]; i++)
			if (!expected(test, skipped[test, i])) {
				status = "fail"
				why = "unlisted skip: " skipped[test, i]
				break
			}
		if (status == "pass" && n_skipped[test])
			why = n_skipped[test] " skipped inside, as listed"
	}
	if (test in finding) {
		status = "fail"
		why = (why == "" ? "" : why "; ") "console: " finding[test]
	}
	if (test in stuck) {
		status = "fail"
		why = (why == "" ? "" : why "; ") "it left processes that cannot be killed"
	} else if (test == last && ended != "" && ended != "done") {
		status = "fail"
		why = (why == "" ? "" : why "; ") "lost VM after its result: " (panic != "" ? panic : ended)
	}
}

function write_log(test,    f) {
	f = logs "/" test ".log"
	printf "%s: %s%s\n\n--- output\n%s\n--- console\n%s", test, status, (why == "" ? "" : " [" why "]"),
		output_of[test], console_of[test] > f
	if (test in complaint_of)
		printf "\n--- first complaint of the console\n%s", complaint_of[test] > f
	close(f)
}

function emit(test) {
	gsub(/\t/, " ", why)
	printf "%s\t%s\t%s\t%s\n", test, status, seconds, why
	if (logs != "")
		write_log(test)
}

BEGIN {
	BAD = "WARNING:|BUG:|BUG [a-z]|Oops|KASAN|KFENCE|UBSAN|refcount_t:|cut here|general protection|Unable to handle"
	BAD = BAD "|Kernel panic|Bad page|bad page|double fault|soft lockup|hard LOCKUP|INFO: task .* blocked|rcu.*(stall|detected)"
	BAD = BAD "|possible (circular|recursive|irq)|inconsistent lock state|suspicious RCU|lock held when|held lock freed"
	BAD = BAD "|lock nesting|turning off the locking correctness validator|list_(add|del) corruption|page dumped because"
	BAD = BAD "|kmemleak: [0-9]+ new suspected|ODEBUG|trace_printk"
	BAD = BAD "|pagealloc: (single bit error|memory corruption)"

	read_lists()
	read_console()
	read_report()
	if (ended != "")
		over[last] = 1

	if ("boot" in finding && ended != "") {
		status = "fail"
		seconds = "-"
		why = "console: " finding["boot"]
		emit("boot")
	}
	for (i = 1; i <= n_tests; i++) {
		test = order[i]
		if (started[test] && over[test]) {
			judge(test)
			emit(test)
		} else if (!started[test] && all_done) {
			status = "fail"
			seconds = "-"
			why = "no status: it never started"
			emit(test)
		}
	}
	if (ended != "" && n_others)
		printf "note\t%d data races with none of our functions in them\n", n_others
	# Notices only count where the test ran.
	if (ended != "")
		for (i = 1; i <= n_skips; i++)
			if (!used[i] && started[skip_test[i]])
				printf "note\t%s did not skip%s, as tests/expected-skips says it would\n", skip_test[i],
					skip_regex[i] == "" ? "" : " \"" skip_regex[i] "\""
	exit 0
}
