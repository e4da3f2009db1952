// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of mm/memfile_notifier.c: bindings, delivery, ownership.
 *
 * They bring a backing store of their own, whose files are anonymous inodes
 * without pages. What is allocated in a file is whatever the test has put into
 * i_pages, so nothing but the notifier is under test, and a test sees every
 * step of a change. How the real stores call it is for the selftests.
 */

#include <kunit/resource.h>
#include <kunit/test.h>

#include <linux/anon_inodes.h>
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/memfile_notifier.h>
#include <linux/pagemap.h>
#include <linux/sizes.h>
#include <linux/xarray.h>

/* Pages of a test file. */
#define FILE_PAGES	32UL

/*
 * The fake backing store
 */

static const struct file_operations test_fops = {};

static bool test_store_owns(struct file *file)
{
	return file->f_op == &test_fops;
}

static int test_store_get_pfn(struct file *file, pgoff_t index,
			      struct page **page, unsigned int *order)
{
	return -ENOENT;
}

/* Registered for good, as there is no way back; owns no other file. */
static struct memfile_backing_store test_store = {
	.id = BIT(31),
	.pfn_ops.get_pfn = test_store_get_pfn,
	.owns = test_store_owns,
};

/* Pages are entries that are no pages, like those of swapped out ones. */
static void allocate(struct file *file, pgoff_t start, pgoff_t end)
{
	for (; start < end; start++)
		xa_store_irq(&file->f_mapping->i_pages, start,
			     xa_mk_value(start), GFP_KERNEL | __GFP_NOFAIL);
}

static void punch(struct file *file, pgoff_t start, pgoff_t end)
{
	for (; start < end; start++)
		xa_erase_irq(&file->f_mapping->i_pages, start);
}

static void change_start(struct file *file, pgoff_t start, pgoff_t end,
			 enum memfile_event event)
{
	inode_lock(file_inode(file));
	memfile_notifier_start(file->f_mapping, start, end, event);
}

static void change_end(struct file *file, pgoff_t start, pgoff_t end,
		       enum memfile_event event)
{
	memfile_notifier_end(file->f_mapping, start, end, event);
	inode_unlock(file_inode(file));
}

/* What a store does on fallocate(). */
static void change(struct file *file, pgoff_t start, pgoff_t end,
		   enum memfile_event event)
{
	change_start(file, start, end, event);
	if (event == MEMFILE_ALLOCATED)
		allocate(file, start, end);
	else
		punch(file, start, end);
	change_end(file, start, end, event);
}

static void test_file_put(void *data)
{
	struct file *file = data;

	punch(file, 0, FILE_PAGES);
	memfile_evict(file->f_mapping);
	fput(file);
}

static struct file *test_file(struct kunit *test, int flags)
{
	struct file *file;

	file = anon_inode_create_getfile("[memfile-test]", &test_fops, NULL,
					 flags, NULL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, test_file_put, file));
	i_size_write(file_inode(file), FILE_PAGES << PAGE_SHIFT);
	return file;
}

/*
 * The consumer, which writes down what it is told
 */

struct test_consumer {
	struct memfile_binding binding;
	bool bound;
	char log[256];
};

static __printf(2, 3) void test_log(struct memfile_binding *binding,
				    const char *fmt, ...)
{
	struct test_consumer *consumer =
		container_of(binding, struct test_consumer, binding);
	size_t len = strlen(consumer->log);
	va_list args;

	va_start(args, fmt);
	vscnprintf(consumer->log + len, sizeof(consumer->log) - len, fmt, args);
	va_end(args);
}

static const char *event_name(enum memfile_event event)
{
	return event == MEMFILE_ALLOCATED ? "allocated" : "freed";
}

static void test_invalidate_start(struct memfile_binding *binding,
				  pgoff_t start, pgoff_t end,
				  enum memfile_event event)
{
	test_log(binding, "start(%lu,%lu,%s) ", start, end, event_name(event));
}

static void test_invalidate_end(struct memfile_binding *binding, pgoff_t start,
				pgoff_t end, enum memfile_event event)
{
	test_log(binding, "end(%lu,%lu,%s) ", start, end, event_name(event));
}

static void test_zap(struct memfile_binding *binding, pgoff_t start,
		     pgoff_t end)
{
	test_log(binding, "zap(%lu,%lu) ", start, end);
}

static const struct memfile_notifier_ops test_ops = {
	.invalidate_start = test_invalidate_start,
	.invalidate_end = test_invalidate_end,
	.zap = test_zap,
};

static void test_unbind(void *data)
{
	struct test_consumer *consumer = data;

	if (consumer->bound)
		memfile_unbind(&consumer->binding);
	consumer->bound = false;
}

static struct test_consumer *test_consumer(struct kunit *test)
{
	struct test_consumer *consumer;

	consumer = kunit_kzalloc(test, sizeof(*consumer), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, consumer);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, test_unbind,
							   consumer));
	return consumer;
}

static int test_bind(struct test_consumer *consumer, struct file *file,
		     pgoff_t start, unsigned long nr, u64 owner)
{
	int error;

	error = memfile_bind(&consumer->binding, file, start, nr, owner,
			     &test_ops);
	consumer->bound = !error;
	return error;
}

/* A consumer with [@start, @end) of @file. */
static struct test_consumer *bound_consumer(struct kunit *test,
					    struct file *file, pgoff_t start,
					    pgoff_t end, u64 owner)
{
	struct test_consumer *consumer = test_consumer(test);

	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, start, end - start,
					   owner));
	return consumer;
}

/* What binding [@start, @start + @nr) of @file gives; undone at once. */
static int probe_bind(struct kunit *test, struct file *file, pgoff_t start,
		      unsigned long nr, u64 owner)
{
	struct test_consumer *consumer = test_consumer(test);
	int error;

	error = test_bind(consumer, file, start, nr, owner);
	test_unbind(consumer);
	return error;
}

/*
 * Binding
 */

static void memfile_test_stores(struct kunit *test)
{
	unsigned long mask = memfile_backing_stores();

	KUNIT_EXPECT_TRUE(test, mask & MEMFILE_STORE_SHMEM);
	KUNIT_EXPECT_EQ(test, mask & test_store.id, test_store.id);
	KUNIT_EXPECT_EQ(test, mask & ~(MEMFILE_STORE_SHMEM |
				       MEMFILE_STORE_HUGETLBFS |
				       test_store.id), 0);
}

static void memfile_test_owner_ids(struct kunit *test)
{
	u64 last = 0;
	int i;

	/* 0 is nobody. An id that grows does not come back. */
	for (i = 0; i < 1000; i++) {
		u64 owner = memfile_new_owner();

		KUNIT_ASSERT_GT(test, owner, last);
		last = owner;
	}
}

static void memfile_test_bind_unbind(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_consumer *consumer = test_consumer(test);
	struct memfile_binding *binding = &consumer->binding;
	u64 owner = memfile_new_owner();
	long count = file_count(file);

	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 4, 8, owner));
	KUNIT_EXPECT_EQ(test, binding->range.start, 4);
	KUNIT_EXPECT_EQ(test, binding->range.last, 11);
	KUNIT_EXPECT_PTR_EQ(test, binding->file, file);
	KUNIT_EXPECT_PTR_EQ(test, binding->ops, &test_ops);
	KUNIT_EXPECT_PTR_EQ(test, binding->pfn_ops, &test_store.pfn_ops);
	KUNIT_EXPECT_EQ(test, file_count(file), count + 1);
	KUNIT_EXPECT_STREQ(test, consumer->log, "");

	test_unbind(consumer);
	KUNIT_EXPECT_EQ(test, file_count(file), count);
	KUNIT_EXPECT_STREQ(test, consumer->log, "zap(4,12) ");

	/* What is unbound can be bound again. */
	KUNIT_EXPECT_EQ(test, 0, test_bind(consumer, file, 4, 8, owner));
}

static void memfile_test_bind_mode(struct kunit *test)
{
	static const int flags[] = { O_RDONLY, O_WRONLY };
	u64 owner = memfile_new_owner();
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		struct file *file = test_file(test, flags[i]);
		long count = file_count(file);

		KUNIT_EXPECT_EQ(test, -EBADF,
				probe_bind(test, file, 0, 1, owner));
		KUNIT_EXPECT_EQ(test, file_count(file), count);
	}
}

static void memfile_test_bind_foreign_file(struct kunit *test)
{
	static const struct file_operations other_fops = {};
	struct file *file = test_file(test, O_RDWR);
	long count = file_count(file);

	file->f_op = &other_fops;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			probe_bind(test, file, 0, 1, memfile_new_owner()));
	KUNIT_EXPECT_EQ(test, file_count(file), count);
	file->f_op = &test_fops;
}

struct range_param {
	const char *name;
	loff_t size;
	pgoff_t start;
	unsigned long nr;
	int error;
};

static const struct range_param range_params[] = {
	{ "whole file", SZ_1M, 0, SZ_1M / PAGE_SIZE },
	{ "last page", SZ_1M, SZ_1M / PAGE_SIZE - 1, 1 },
	{ "no page", SZ_1M, 0, 0, -EINVAL },
	{ "no page at the end", SZ_1M, SZ_1M / PAGE_SIZE, 0, -EINVAL },
	{ "page after the end", SZ_1M, SZ_1M / PAGE_SIZE, 1, -EINVAL },
	{ "end after the end", SZ_1M, 1, SZ_1M / PAGE_SIZE, -EINVAL },
	{ "larger than the file", SZ_1M, 0, SZ_1M / PAGE_SIZE + 1, -EINVAL },
	{ "far away", SZ_1M, LONG_MAX, 1, -EINVAL },
	{ "overflow to 0", SZ_1M, ULONG_MAX, 1, -EINVAL },
	{ "overflow into the file", SZ_1M, ULONG_MAX, 3, -EINVAL },
	{ "overflow of a large size", SZ_1M, 2, ULONG_MAX, -EINVAL },
	{ "negative as signed", SZ_1M, 0, 1UL << (BITS_PER_LONG - 1), -EINVAL },
	{ "empty file", 0, 0, 1, -EINVAL },
	{ "part of a page", PAGE_SIZE - 1, 0, 1, -EINVAL },
	{ "page and a part", PAGE_SIZE + 1, 0, 2, -EINVAL },
	{ "page before a part", PAGE_SIZE + 1, 0, 1 },
};

KUNIT_ARRAY_PARAM_DESC(range, range_params, name);

static void memfile_test_bind_range(struct kunit *test)
{
	const struct range_param *param = test->param_value;
	struct file *file = test_file(test, O_RDWR);
	long count = file_count(file);

	i_size_write(file_inode(file), param->size);
	KUNIT_EXPECT_EQ(test, param->error,
			probe_bind(test, file, param->start, param->nr,
				   memfile_new_owner()));
	KUNIT_EXPECT_EQ(test, file_count(file), count);
}

struct overlap_param {
	const char *name;
	pgoff_t start;
	pgoff_t end;
	int error;
};

/* Against a binding of [8, 16). */
static const struct overlap_param overlap_params[] = {
	{ "before", 0, 7 },
	{ "up to it", 0, 8 },
	{ "from it on", 16, 24 },
	{ "after", 17, 24 },
	{ "first page", 8, 9, -EEXIST },
	{ "last page", 15, 16, -EEXIST },
	{ "inside", 10, 12, -EEXIST },
	{ "same", 8, 16, -EEXIST },
	{ "front half", 8, 12, -EEXIST },
	{ "back half", 12, 16, -EEXIST },
	{ "over the front", 4, 12, -EEXIST },
	{ "over the back", 12, 20, -EEXIST },
	{ "first page over the front", 0, 9, -EEXIST },
	{ "last page over the back", 15, 24, -EEXIST },
	{ "from the front beyond", 8, 20, -EEXIST },
	{ "up to the back", 4, 16, -EEXIST },
	{ "around", 4, 20, -EEXIST },
	{ "whole file", 0, FILE_PAGES, -EEXIST },
};

KUNIT_ARRAY_PARAM_DESC(overlap, overlap_params, name);

static void memfile_test_bind_overlap(struct kunit *test)
{
	const struct overlap_param *param = test->param_value;
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *consumer =
		bound_consumer(test, file, 8, 16, owner);
	long count = file_count(file);

	KUNIT_EXPECT_EQ(test, param->error,
			probe_bind(test, file, param->start,
				   param->end - param->start, owner));
	KUNIT_EXPECT_EQ(test, file_count(file), count);

	/* The binding that was there has not noticed. */
	KUNIT_EXPECT_STREQ(test, consumer->log, "");
	change(file, 8, 16, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(8,16,allocated) end(8,16,allocated) ");
}

/*
 * Ownership
 */

static void memfile_test_owner_empty_file(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();
	struct test_consumer *consumer = bound_consumer(test, file, 0, 8, owner);

	/* Bound: nobody else, wherever; not even while there is no content. */
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, other));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 16, 8, owner));
	/* Somebody else's bindings are none of the asker's business. */
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));

	/* Unbound and empty: anybody. */
	test_unbind(consumer);
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8, other));
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, owner));
}

static void memfile_test_owner_content(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();
	struct test_consumer *consumer = bound_consumer(test, file, 0, 8, owner);

	change(file, 0, 2, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, other));

	/* The content keeps its owner when it is unbound... */
	test_unbind(consumer);
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, other));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 16, 8, owner));

	/* ...to the last page. */
	change(file, 1, 2, MEMFILE_FREED);
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, other));
	change(file, 0, 1, MEMFILE_FREED);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 16, 8, other));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 16, 8, owner));
}

static void memfile_test_owner_emptied_while_bound(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();
	struct test_consumer *consumer = bound_consumer(test, file, 0, 8, owner);

	change(file, 0, 2, MEMFILE_ALLOCATED);
	change(file, 0, 2, MEMFILE_FREED);
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 16, 8, other));

	test_unbind(consumer);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 16, 8, other));
}

/* As khugepaged leaves them when it gives up, or a lack of memory half-way. */
static void leave_empty_nodes(struct file *file)
{
	const unsigned int order = XA_CHUNK_SHIFT + 1;
	XA_STATE_ORDER(xas, &file->f_mapping->i_pages, 0, order);

	do {
		xas_lock_irq(&xas);
		xas_create_range(&xas);
		xas_unlock_irq(&xas);
	} while (xas_nomem(&xas, GFP_KERNEL));
}

static void memfile_test_owner_empty_nodes(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();

	/* What counts is pages, not what the tree has been made of. */
	leave_empty_nodes(file);
	KUNIT_ASSERT_FALSE(test, mapping_empty(file->f_mapping));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, other));
	change(file, 0, 2, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));
	change(file, 0, 2, MEMFILE_FREED);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, other));
}

static void memfile_test_owner_filled_before(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();

	/* What was filled by nobody goes to whom it is given to, for good. */
	change(file, 0, 2, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
}

static void memfile_test_owner_failed_bind(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();

	/* Who fails to bind owns nothing. */
	change(file, 0, 2, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_EQ(test, -EINVAL,
			probe_bind(test, file, FILE_PAGES, 1, other));
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));
}

static void expect_pinned(struct kunit *test, struct file *file, bool pinned)
{
	KUNIT_EXPECT_EQ(test, pinned, mapping_unevictable(file->f_mapping));
	KUNIT_EXPECT_EQ(test, pinned, mapping_inaccessible(file->f_mapping));
}

static void undo_bind(struct test_consumer *consumer)
{
	memfile_undo_bind(&consumer->binding);
	consumer->bound = false;
}

/* Who takes a bind back leaves the file as it was. */
static void memfile_test_owner_undone_bind(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_consumer *consumer = test_consumer(test);
	u64 owner = memfile_new_owner();
	u64 other = memfile_new_owner();

	change(file, 0, 2, MEMFILE_ALLOCATED);
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8, other));
	undo_bind(consumer);
	KUNIT_EXPECT_STREQ(test, consumer->log, "zap(0,8) ");
	expect_pinned(test, file, false);

	/* It has an owner then, and keeps it. */
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8, owner));
	undo_bind(consumer);
	expect_pinned(test, file, true);
	KUNIT_EXPECT_EQ(test, -EBUSY, probe_bind(test, file, 0, 8, other));

	/* Until it is empty. */
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8, owner));
	change(file, 0, 2, MEMFILE_FREED);
	undo_bind(consumer);
	expect_pinned(test, file, false);
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, other));
}

/* From the first bind until the file is empty, and no longer. */
static void memfile_test_pages_stay_put(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *consumer;

	change(file, 0, 2, MEMFILE_ALLOCATED);
	expect_pinned(test, file, false);

	consumer = bound_consumer(test, file, 0, 8, owner);
	expect_pinned(test, file, true);
	test_unbind(consumer);
	expect_pinned(test, file, true);
	change(file, 0, 2, MEMFILE_FREED);
	expect_pinned(test, file, false);

	/* Bound, it is pinned before there is any content. */
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8, owner));
	expect_pinned(test, file, true);
	change(file, 0, 2, MEMFILE_ALLOCATED);
	change(file, 0, 2, MEMFILE_FREED);
	expect_pinned(test, file, true);
	test_unbind(consumer);
	expect_pinned(test, file, false);
}

/*
 * Delivery
 */

static void memfile_test_notify_clipped(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *a = bound_consumer(test, file, 0, 4, owner);
	struct test_consumer *b = bound_consumer(test, file, 4, 8, owner);
	struct test_consumer *c = bound_consumer(test, file, 12, 16, owner);
	struct test_consumer *d = bound_consumer(test, file, 20, 24, owner);

	/* The end of a, all of b, a gap, the front of c; not d. */
	change_start(file, 2, 14, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, a->log, "start(2,4,allocated) ");
	KUNIT_EXPECT_STREQ(test, b->log, "start(4,8,allocated) ");
	KUNIT_EXPECT_STREQ(test, c->log, "start(12,14,allocated) ");
	KUNIT_EXPECT_STREQ(test, d->log, "");

	change_end(file, 2, 14, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, a->log,
			   "start(2,4,allocated) end(2,4,allocated) ");
	KUNIT_EXPECT_STREQ(test, b->log,
			   "start(4,8,allocated) end(4,8,allocated) ");
	KUNIT_EXPECT_STREQ(test, c->log,
			   "start(12,14,allocated) end(12,14,allocated) ");
	KUNIT_EXPECT_STREQ(test, d->log, "");
}

static void memfile_test_notify_edges(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_consumer *consumer =
		bound_consumer(test, file, 8, 16, memfile_new_owner());

	/* Next to it. */
	change(file, 7, 8, MEMFILE_FREED);
	change(file, 16, 17, MEMFILE_FREED);
	KUNIT_EXPECT_STREQ(test, consumer->log, "");

	/* Its first page, its last one. */
	change(file, 8, 9, MEMFILE_FREED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(8,9,freed) end(8,9,freed) ");
	consumer->log[0] = 0;
	change(file, 15, 16, MEMFILE_FREED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(15,16,freed) end(15,16,freed) ");

	/* More than it. */
	consumer->log[0] = 0;
	change(file, 0, FILE_PAGES, MEMFILE_FREED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(8,16,freed) end(8,16,freed) ");
}

static void memfile_test_notify_other_file(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct file *other = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *a = bound_consumer(test, file, 0, 8, owner);
	struct test_consumer *b = bound_consumer(test, other, 0, 8, owner);

	change(other, 0, 8, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, a->log, "");
	KUNIT_EXPECT_STREQ(test, b->log,
			   "start(0,8,allocated) end(0,8,allocated) ");
}

static void memfile_test_notify_nobody(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_consumer *consumer = test_consumer(test);

	/* Never bound, bound no more. */
	change(file, 0, 8, MEMFILE_ALLOCATED);
	memfile_notifier_zap(file->f_mapping, 0, 8);
	KUNIT_ASSERT_EQ(test, 0, test_bind(consumer, file, 0, 8,
					   memfile_new_owner()));
	test_unbind(consumer);
	consumer->log[0] = 0;
	change(file, 0, 8, MEMFILE_FREED);
	memfile_notifier_zap(file->f_mapping, 0, 8);
	KUNIT_EXPECT_STREQ(test, consumer->log, "");
}

/* The store works off a long range in chunks, each with its start and end. */
static void memfile_test_notify_chunks(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_consumer *consumer =
		bound_consumer(test, file, 3, 6, memfile_new_owner());

	change(file, 0, 4, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(3,4,allocated) end(3,4,allocated) ");
	consumer->log[0] = 0;
	change(file, 4, 8, MEMFILE_ALLOCATED);
	KUNIT_EXPECT_STREQ(test, consumer->log,
			   "start(4,6,allocated) end(4,6,allocated) ");
}

static void memfile_test_notify_many(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *consumers[FILE_PAGES];
	unsigned long i;

	for (i = 0; i < FILE_PAGES; i++)
		consumers[i] = bound_consumer(test, file, i, i + 1, owner);
	/* One less, in the middle of what is to change. */
	test_unbind(consumers[12]);
	consumers[12]->log[0] = 0;

	change(file, 10, 20, MEMFILE_ALLOCATED);
	for (i = 0; i < FILE_PAGES; i++) {
		char expected[64] = "";

		if (i >= 10 && i < 20 && i != 12)
			sprintf(expected,
				"start(%lu,%lu,allocated) end(%lu,%lu,allocated) ",
				i, i + 1, i, i + 1);
		KUNIT_EXPECT_STREQ(test, consumers[i]->log, expected);
	}
}

static void memfile_test_zap_clipped(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *a = bound_consumer(test, file, 0, 4, owner);
	struct test_consumer *b = bound_consumer(test, file, 4, 8, owner);
	struct test_consumer *c = bound_consumer(test, file, 8, 12, owner);

	/* Without the inode lock, as memory failure calls it. */
	memfile_notifier_zap(file->f_mapping, 3, 6);
	KUNIT_EXPECT_STREQ(test, a->log, "zap(3,4) ");
	KUNIT_EXPECT_STREQ(test, b->log, "zap(4,6) ");
	KUNIT_EXPECT_STREQ(test, c->log, "");

	/* And it may come at any moment. */
	change_start(file, 8, 12, MEMFILE_FREED);
	memfile_notifier_zap(file->f_mapping, 8, 9);
	change_end(file, 8, 12, MEMFILE_FREED);
	KUNIT_EXPECT_STREQ(test, c->log,
			   "start(8,12,freed) zap(8,9) end(8,12,freed) ");
}

static void memfile_test_zap_on_unbind(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	u64 owner = memfile_new_owner();
	struct test_consumer *a = bound_consumer(test, file, 0, 4, owner);
	struct test_consumer *b = bound_consumer(test, file, 4, 8, owner);

	change(file, 0, 8, MEMFILE_ALLOCATED);
	a->log[0] = 0;
	b->log[0] = 0;

	test_unbind(a);
	KUNIT_EXPECT_STREQ(test, a->log, "zap(0,4) ");
	KUNIT_EXPECT_STREQ(test, b->log, "");

	/* That was the last it heard. */
	change(file, 0, 8, MEMFILE_FREED);
	memfile_notifier_zap(file->f_mapping, 0, 8);
	KUNIT_EXPECT_STREQ(test, a->log, "zap(0,4) ");
	KUNIT_EXPECT_STREQ(test, b->log,
			   "start(4,8,freed) end(4,8,freed) zap(4,8) ");
}

static void memfile_test_evict(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct address_space *mapping = file->f_mapping;
	u64 owner = memfile_new_owner();

	/* Not a trace of a file that was never bound, or not successfully. */
	memfile_evict(mapping);
	KUNIT_EXPECT_TRUE(test, list_empty(&mapping->i_private_list));

	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			probe_bind(test, file, FILE_PAGES, 1, owner));
	memfile_evict(mapping);
	KUNIT_EXPECT_TRUE(test, list_empty(&mapping->i_private_list));

	/* With content whose owner is gone. */
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, owner));
	change(file, 0, 8, MEMFILE_ALLOCATED);
	punch(file, 0, 8);
	memfile_evict(mapping);
	KUNIT_EXPECT_TRUE(test, list_empty(&mapping->i_private_list));
}

/*
 * Bind and unbind against a change in progress
 */

struct test_thread {
	struct test_consumer *consumer;
	struct file *file;
	u64 owner;
	int error;
	struct completion begun;
	struct completion done;
};

static int test_bind_thread(void *data)
{
	struct test_thread *thread = data;

	complete(&thread->begun);
	thread->error = test_bind(thread->consumer, thread->file, 0, 8,
				  thread->owner);
	complete_all(&thread->done);
	return 0;
}

static int test_unbind_thread(void *data)
{
	struct test_thread *thread = data;

	complete(&thread->begun);
	test_unbind(thread->consumer);
	complete_all(&thread->done);
	return 0;
}

/* Let @fn try to come between a start and its end. */
static void run_against_change(struct kunit *test, struct test_thread *thread,
			       int (*fn)(void *data))
{
	struct task_struct *task;
	unsigned long left;

	init_completion(&thread->begun);
	init_completion(&thread->done);

	change_start(thread->file, 0, 8, MEMFILE_ALLOCATED);
	task = kthread_run(fn, thread, "memfile-test");
	if (!IS_ERR(task)) {
		wait_for_completion(&thread->begun);
		left = wait_for_completion_timeout(&thread->done, HZ / 10);
		KUNIT_EXPECT_EQ(test, left, 0);
	}
	change_end(thread->file, 0, 8, MEMFILE_ALLOCATED);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, task);
	wait_for_completion(&thread->done);
}

static void memfile_test_unbind_waits(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_thread thread = {
		.consumer = bound_consumer(test, file, 0, 8,
					   memfile_new_owner()),
		.file = file,
	};

	run_against_change(test, &thread, test_unbind_thread);
	KUNIT_EXPECT_STREQ(test, thread.consumer->log,
			   "start(0,8,allocated) end(0,8,allocated) zap(0,8) ");
}

static void memfile_test_bind_waits(struct kunit *test)
{
	struct file *file = test_file(test, O_RDWR);
	struct test_thread thread = {
		.consumer = test_consumer(test),
		.file = file,
		.owner = memfile_new_owner(),
	};

	/* Also if the file has been bound before: it has a node then. */
	KUNIT_EXPECT_EQ(test, 0, probe_bind(test, file, 0, 8, thread.owner));
	run_against_change(test, &thread, test_bind_thread);
	KUNIT_EXPECT_EQ(test, thread.error, 0);
	KUNIT_EXPECT_STREQ(test, thread.consumer->log, "");
}

static struct kunit_case memfile_test_cases[] = {
	KUNIT_CASE(memfile_test_stores),
	KUNIT_CASE(memfile_test_owner_ids),
	KUNIT_CASE(memfile_test_bind_unbind),
	KUNIT_CASE(memfile_test_bind_mode),
	KUNIT_CASE(memfile_test_bind_foreign_file),
	KUNIT_CASE_PARAM(memfile_test_bind_range, range_gen_params),
	KUNIT_CASE_PARAM(memfile_test_bind_overlap, overlap_gen_params),
	KUNIT_CASE(memfile_test_owner_empty_file),
	KUNIT_CASE(memfile_test_owner_content),
	KUNIT_CASE(memfile_test_owner_emptied_while_bound),
	KUNIT_CASE(memfile_test_owner_empty_nodes),
	KUNIT_CASE(memfile_test_owner_filled_before),
	KUNIT_CASE(memfile_test_owner_failed_bind),
	KUNIT_CASE(memfile_test_owner_undone_bind),
	KUNIT_CASE(memfile_test_pages_stay_put),
	KUNIT_CASE(memfile_test_notify_clipped),
	KUNIT_CASE(memfile_test_notify_edges),
	KUNIT_CASE(memfile_test_notify_other_file),
	KUNIT_CASE(memfile_test_notify_nobody),
	KUNIT_CASE(memfile_test_notify_chunks),
	KUNIT_CASE(memfile_test_notify_many),
	KUNIT_CASE(memfile_test_zap_clipped),
	KUNIT_CASE(memfile_test_zap_on_unbind),
	KUNIT_CASE(memfile_test_evict),
	KUNIT_CASE(memfile_test_unbind_waits),
	KUNIT_CASE(memfile_test_bind_waits),
	{}
};

static int __init memfile_test_suite_init(struct kunit_suite *suite)
{
	memfile_register_backing_store(&test_store);
	return 0;
}

/* The store stays, but nobody shall count on it. */
static void memfile_test_suite_exit(struct kunit_suite *suite)
{
	test_store.id = 0;
}

/* Refers to init code, as suites that run at init may. */
static struct kunit_suite memfile_test_suite __refdata = {
	.name = "memfile_notifier",
	.suite_init = memfile_test_suite_init,
	.suite_exit = memfile_test_suite_exit,
	.test_cases = memfile_test_cases,
};

/* At init only: that is when backing stores register. */
kunit_test_init_section_suite(memfile_test_suite);
