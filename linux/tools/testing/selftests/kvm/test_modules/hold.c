// SPDX-License-Identifier: GPL-2.0
/*
 * Hold a task at a tracepoint, for tests of races: it is kept there until it is
 * let go, and the other side does meanwhile what it wants. The parameters, in
 * /sys/module/hold/parameters:
 *
 * at     the name of a tracepoint, of the kernel or of a module that is loaded:
 *        the next task of the writer's process that comes there is held. An empty
 *        name lets it go, and waits until it has gone.
 * state  "armed"; "held", by now; "free", let go, or never armed; "late", nobody
 *        has let it go within LIMIT_NS
 * hits   how often the process has been at the tracepoint since it was armed
 *
 * The task spins without preemption but with interrupts, so its CPU does nothing
 * else: who waits for all CPUs waits for it. The module stays, as there is no
 * moment at which nobody can be in the probe.
 */
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/processor.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>
#include <linux/tracepoint.h>

/* Less than what makes the kernel complain of a CPU that is stuck. */
#define LIMIT_NS	(15 * NSEC_PER_SEC)

enum hold_state { HOLD_FREE, HOLD_ARMED, HOLD_HELD, HOLD_LATE };

static const char *const state_names[] = { "free", "armed", "held", "late" };

static DEFINE_MUTEX(lock);		/* of what is registered */
static struct tracepoint *where;
static struct module *owner;		/* of it, with a reference, or NULL */
static atomic_t state = ATOMIC_INIT(HOLD_FREE);
static atomic_t inside = ATOMIC_INIT(0);
static atomic_t hits = ATOMIC_INIT(0);
static pid_t whose;

/* The arguments of the tracepoint follow, and don't matter. */
static void probe(void *data)
{
	u64 until;

	/* Before any look at whose turn it is, so that arm() can't change it under this. */
	atomic_inc(&inside);
	if (current->tgid != READ_ONCE(whose))
		goto out;
	atomic_inc(&hits);
	if (atomic_cmpxchg(&state, HOLD_ARMED, HOLD_HELD) == HOLD_ARMED) {
		until = ktime_get_mono_fast_ns() + LIMIT_NS;
		while (atomic_read(&state) == HOLD_HELD) {
			if (ktime_get_mono_fast_ns() > until)
				atomic_cmpxchg(&state, HOLD_HELD, HOLD_LATE);
			cpu_relax();
		}
	}
out:
	atomic_dec(&inside);
}

struct wanted {
	const char *name;
	struct tracepoint *found;
	struct module *owner;
	struct notifier_block nb;
};

static void match(struct tracepoint *tp, void *priv)
{
	struct wanted *wanted = priv;

	if (!strcmp(tp->name, wanted->name))
		wanted->found = tp;
}

/* To be asked for those of modules one has to be interested in modules that come. */
static int match_module(struct notifier_block *nb, unsigned long action, void *data)
{
	struct wanted *wanted = container_of(nb, struct wanted, nb);
	struct module *mod = ((struct tp_module *)data)->mod;
	unsigned int i;

	for (i = 0; i < mod->num_tracepoints && !wanted->found; i++) {
		match(tracepoint_ptr_deref(&mod->tracepoints_ptrs[i]), wanted);
		if (wanted->found && !try_module_get(mod))
			wanted->found = NULL;
		else if (wanted->found)
			wanted->owner = mod;
	}
	return NOTIFY_OK;
}

static void find(struct wanted *wanted)
{
	for_each_kernel_tracepoint(match, wanted);
	if (!wanted->found && !register_tracepoint_module_notifier(&wanted->nb))
		unregister_tracepoint_module_notifier(&wanted->nb);
}

/* Who was late stays late. */
static void let_go(void)
{
	int old = atomic_read(&state);

	while (old != HOLD_LATE && !atomic_try_cmpxchg(&state, &old, HOLD_FREE))
		;
	while (atomic_read(&inside))
		cpu_relax();
}

static int arm(const char *name)
{
	struct wanted wanted = { .name = name, .nb = { match_module } };
	int error;

	find(&wanted);
	if (!wanted.found)
		return -ENOENT;
	if (wanted.found != where) {
		if (where)
			tracepoint_probe_unregister(where, probe, NULL);
		where = NULL;
		module_put(owner);
		owner = wanted.owner;
		error = tracepoint_probe_register(wanted.found, probe, NULL);
		if (error)
			return error;
		where = wanted.found;
	} else {
		module_put(wanted.owner);
	}
	WRITE_ONCE(whose, current->tgid);
	atomic_set(&hits, 0);
	atomic_set(&state, HOLD_ARMED);
	return 0;
}

static int at_set(const char *val, const struct kernel_param *kp)
{
	char name[64];
	int error = 0;

	if (strscpy(name, val, sizeof(name)) < 0)
		return -EINVAL;
	mutex_lock(&lock);
	let_go();
	if (*strim(name))
		error = arm(strim(name));
	mutex_unlock(&lock);
	return error;
}

static int at_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", where ? where->name : "");
}

static const struct kernel_param_ops at_ops = { .set = at_set, .get = at_get };
module_param_cb(at, &at_ops, NULL, 0600);

static int state_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%s\n", state_names[atomic_read(&state)]);
}

static const struct kernel_param_ops state_ops = { .get = state_get };
module_param_cb(state, &state_ops, NULL, 0400);

static int hits_get(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&hits));
}

static const struct kernel_param_ops hits_ops = { .get = hits_get };
module_param_cb(hits, &hits_ops, NULL, 0400);

static int __init hold_init(void)
{
	__module_get(THIS_MODULE);
	return 0;
}
module_init(hold_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Hold a task at a tracepoint");
