// SPDX-License-Identifier: GPL-2.0
/*
 * Bindings of file ranges to consumers that map the pages without a VMA.
 *
 * The contract, the lock order and the callbacks are described in
 * include/linux/memfile_notifier.h.
 *
 * A file gets a memfile_node at its first bind and keeps it until eviction, so
 * that the owner of the content outlives the last binding. The node hangs off
 * mapping->i_private_list, which neither shmem nor hugetlbfs uses, and so costs
 * the other inodes nothing.
 */

#include <linux/export.h>
#include <linux/file.h>
#include <linux/init.h>
#include <linux/memfd.h>
#include <linux/memfile_notifier.h>
#include <linux/rculist.h>
#include <linux/rwsem.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

#define CREATE_TRACE_POINTS
#include <trace/events/memfile.h>

/**
 * struct memfile_node - what a file knows of its consumers
 * @entry: in mapping->i_private_list, as the only element
 * @sem: protects @bindings. Written with the inode lock held too, so either of
 *       them keeps the bindings stable.
 * @bindings: tree of memfile_binding.range
 * @owner: whose content the file holds, 0 for nobody's; under the inode lock
 * @changing: number of starts without their end; under the inode lock
 */
struct memfile_node {
	struct list_head entry;
	struct rw_semaphore sem;
	struct rb_root_cached bindings;
	u64 owner;
	unsigned int changing;
};

/* Filled at init, constant afterwards: needs no lock. */
static LIST_HEAD(memfile_backing_stores_list);

#define for_each_binding(binding, node, start, end)			\
	for (struct interval_tree_node *_it =				\
		interval_tree_iter_first(&(node)->bindings, start,	\
					 (end) - 1);			\
	     _it && ((binding) = container_of(_it,			\
				struct memfile_binding, range), true);	\
	     _it = interval_tree_iter_next(_it, start, (end) - 1))

/*
 * Memory failure comes here with no lock but the folio's. The node can't go
 * away then: a folio of the file keeps memfile_evict() off.
 */
static struct memfile_node *memfile_node(struct address_space *mapping)
{
	return list_first_or_null_rcu(&mapping->i_private_list,
				      struct memfile_node, entry);
}

static void assert_inode_locked(struct address_space *mapping)
{
	lockdep_assert_held_write(&mapping->host->i_rwsem);
}

/**
 * memfile_register_backing_store - add a kind of file that can be bound
 * @store: its description, which must stay
 *
 * Context: init only, single-threaded.
 */
void __init memfile_register_backing_store(struct memfile_backing_store *store)
{
	list_add_tail(&store->list, &memfile_backing_stores_list);
}

/**
 * memfile_backing_stores - which backing stores there are
 *
 * Return: a mask of MEMFILE_STORE_*.
 */
unsigned long memfile_backing_stores(void)
{
	struct memfile_backing_store *store;
	unsigned long mask = 0;

	list_for_each_entry(store, &memfile_backing_stores_list, list)
		mask |= store->id;
	return mask;
}
EXPORT_SYMBOL_GPL(memfile_backing_stores);

static struct memfile_backing_store *memfile_find_store(struct file *file)
{
	struct memfile_backing_store *store;

	list_for_each_entry(store, &memfile_backing_stores_list, list) {
		if (store->owns(file))
			return store;
	}
	return NULL;
}

/**
 * memfile_new_owner - make up the identity of a consumer
 *
 * Return: a number that no other consumer has, had or will have.
 */
u64 memfile_new_owner(void)
{
	static atomic64_t last = ATOMIC64_INIT(0);

	return atomic64_inc_return(&last);
}
EXPORT_SYMBOL_GPL(memfile_new_owner);

/*
 * Pages stay where they are while a consumer may have mapped them: it has no
 * rmap by which reclaim or migration could find its mappings. Not before the
 * first bind, or anybody could hold unevictable memory.
 */
static void memfile_claim(struct memfile_node *node,
			  struct address_space *mapping, u64 owner)
{
	node->owner = owner;
	mapping_set_inaccessible(mapping); /* unevictable, too */
}

static void memfile_unclaim(struct memfile_node *node,
			    struct address_space *mapping)
{
	node->owner = 0;
	mapping_clear_unevictable(mapping);
	clear_bit(AS_INACCESSIBLE, &mapping->flags);
	/* For folios that have come to the unevictable list meanwhile. */
	shmem_unlock_mapping(mapping);
}

/* mapping_empty() is about nodes of the tree, and some may be left without. */
static bool memfile_is_empty(struct address_space *mapping)
{
	return memfd_next_allocated(mapping, 0, ULONG_MAX) == ULONG_MAX;
}

/* Once nobody can reach the content, and there is none, nobody owns it. */
static void memfile_disown(struct memfile_node *node,
			   struct address_space *mapping)
{
	if (node->owner && !node->changing &&
	    RB_EMPTY_ROOT(&node->bindings.rb_root) && memfile_is_empty(mapping))
		memfile_unclaim(node, mapping);
}

static struct memfile_node *memfile_get_node(struct address_space *mapping)
{
	struct memfile_node *node = memfile_node(mapping);

	if (node)
		return node;

	node = kzalloc(sizeof(*node), GFP_KERNEL_ACCOUNT);
	if (!node)
		return NULL;

	init_rwsem(&node->sem);
	node->bindings = RB_ROOT_CACHED;
	list_add_rcu(&node->entry, &mapping->i_private_list);
	return node;
}

static int memfile_bind_locked(struct memfile_binding *binding, pgoff_t start,
			       unsigned long nr, u64 owner)
{
	struct file *file = binding->file;
	struct address_space *mapping = file->f_mapping;
	loff_t size = i_size_read(mapping->host);
	struct memfile_backing_store *store;
	struct memfile_node *node;

	store = memfile_find_store(file);
	if (!store)
		return -EINVAL;
	/* Its consumer both reads and writes. */
	if ((file->f_mode & (FMODE_READ | FMODE_WRITE)) !=
	    (FMODE_READ | FMODE_WRITE))
		return -EBADF;
	if (!nr || nr > size >> PAGE_SHIFT ||
	    start > (size >> PAGE_SHIFT) - nr)
		return -EINVAL;

	node = memfile_get_node(mapping);
	if (!node)
		return -ENOMEM;
	if (WARN_ON_ONCE(node->changing))
		return -EBUSY;

	if (node->owner && node->owner != owner)
		return -EBUSY;
	if (interval_tree_iter_first(&node->bindings, start, start + nr - 1))
		return -EEXIST;

	binding->range.start = start;
	binding->range.last = start + nr - 1;
	binding->node = node;
	binding->pfn_ops = &store->pfn_ops;
	binding->claimed = !node->owner;

	memfile_claim(node, mapping, owner);
	down_write(&node->sem);
	interval_tree_insert(&binding->range, &node->bindings);
	up_write(&node->sem);
	return 0;
}

/**
 * memfile_bind - bind a range of a file to a consumer
 * @binding: to be filled; embedded in the consumer's object
 * @file: an inaccessible file, pinned on success
 * @start: first page of the range
 * @nr: number of pages
 * @owner: who owns the content, from memfile_new_owner()
 * @ops: what to tell the consumer; may be called before this returns
 *
 * Content has one owner: the first to bind, until the file is empty and
 * unbound. What an unbound file holds belongs to the first that binds it: this
 * is how a filled and sealed file gets to its consumer.
 *
 * Context: may sleep; takes the inode lock.
 * Return: 0; -EINVAL if @file is no inaccessible file of a known store, or the
 * range is empty or not inside it; -EBADF if @file is not open for reading and
 * writing; -EBUSY if its content has another owner; -EEXIST if a part of the
 * range is bound; -ENOMEM.
 */
int memfile_bind(struct memfile_binding *binding, struct file *file,
		 pgoff_t start, unsigned long nr, u64 owner,
		 const struct memfile_notifier_ops *ops)
{
	struct inode *inode = file_inode(file);
	int error;

	/* Don't wait for the lock of just any file; asked again under it. */
	if (!memfile_find_store(file))
		return -EINVAL;

	binding->file = get_file(file);
	binding->ops = ops;

	inode_lock(inode);
	error = memfile_bind_locked(binding, start, nr, owner);
	trace_memfile_bind(inode, start, start + nr, owner, error);
	inode_unlock(inode);

	if (error)
		fput(file);
	return error;
}
EXPORT_SYMBOL_GPL(memfile_bind);

static void __memfile_unbind(struct memfile_binding *binding, bool undo)
{
	struct file *file = binding->file;
	struct address_space *mapping = file->f_mapping;
	struct memfile_node *node = binding->node;
	pgoff_t start = binding->range.start;
	pgoff_t end = binding->range.last + 1;

	inode_lock(mapping->host);
	WARN_ON_ONCE(node->changing);

	down_write(&node->sem);
	/*
	 * Nothing tells the consumer of a hole punched after this, so it must
	 * not keep a mapping, not even to take it down later: that would mark
	 * a freed page dirty.
	 */
	binding->ops->zap(binding, start, end);
	interval_tree_remove(&binding->range, &node->bindings);
	up_write(&node->sem);

	if (undo && binding->claimed && RB_EMPTY_ROOT(&node->bindings.rb_root))
		memfile_unclaim(node, mapping);
	else
		memfile_disown(node, mapping);
	trace_memfile_unbind(mapping->host, start, end);
	inode_unlock(mapping->host);

	fput(file);
}

/**
 * memfile_unbind - end what memfile_bind() has begun
 * @binding: the binding
 *
 * Tells the consumer to drop its mappings; no callback runs any more when this
 * returns. The content keeps its owner.
 *
 * Context: may sleep; takes the inode lock, so waits for a change of the file
 * to come to its end.
 */
void memfile_unbind(struct memfile_binding *binding)
{
	__memfile_unbind(binding, false);
}
EXPORT_SYMBOL_GPL(memfile_unbind);

/**
 * memfile_undo_bind - take memfile_bind() back
 * @binding: the binding
 *
 * For a consumer that can't use the binding after all and has not looked at a
 * page yet: content that was nobody's before is nobody's again.
 *
 * Context: as memfile_unbind(). The caller has held a lock since memfile_bind()
 * that keeps the same owner from binding other parts of the file.
 */
void memfile_undo_bind(struct memfile_binding *binding)
{
	__memfile_unbind(binding, true);
}
EXPORT_SYMBOL_GPL(memfile_undo_bind);

/**
 * memfile_notifier_start - the store is about to change a range
 * @mapping: of the file
 * @start: first page of the range
 * @end: page after the last
 * @event: what happens to it
 *
 * Context: inode lock held, from here to the matching memfile_notifier_end().
 */
void memfile_notifier_start(struct address_space *mapping, pgoff_t start,
			    pgoff_t end, enum memfile_event event)
{
	struct memfile_node *node = memfile_node(mapping);
	struct memfile_binding *binding;

	assert_inode_locked(mapping);
	if (!node || WARN_ON_ONCE(start >= end))
		return;

	trace_memfile_invalidate_start(mapping->host, start, end, event);
	node->changing++;
	down_read(&node->sem);
	for_each_binding(binding, node, start, end)
		binding->ops->invalidate_start(binding,
				max(start, binding->range.start),
				min(end, binding->range.last + 1), event);
	up_read(&node->sem);
}

/**
 * memfile_notifier_end - the store has changed a range
 * @mapping: of the file
 * @start: first page of the range
 * @end: page after the last
 * @event: what happened to it
 *
 * Context: inode lock held, since the memfile_notifier_start() with the same
 * arguments.
 */
void memfile_notifier_end(struct address_space *mapping, pgoff_t start,
			  pgoff_t end, enum memfile_event event)
{
	struct memfile_node *node = memfile_node(mapping);
	struct memfile_binding *binding;

	assert_inode_locked(mapping);
	if (!node || WARN_ON_ONCE(start >= end))
		return;

	/*
	 * The inode lock has kept bind and unbind out: these are the bindings
	 * that have seen the start. The semaphore is not held in between, so
	 * that the store may lock folios there.
	 */
	down_read(&node->sem);
	for_each_binding(binding, node, start, end)
		binding->ops->invalidate_end(binding,
				max(start, binding->range.start),
				min(end, binding->range.last + 1), event);
	up_read(&node->sem);

	WARN_ON_ONCE(!node->changing);
	node->changing--;
	memfile_disown(node, mapping);
	trace_memfile_invalidate_end(mapping->host, start, end, event);
}

/**
 * memfile_notifier_zap - make consumers drop their mappings of some pages
 * @mapping: of the file
 * @start: first page of the range
 * @end: page after the last
 *
 * The pages stay allocated. For memory failure.
 *
 * Context: a folio of the file is locked, inside the range or not; the inode
 * lock is not needed.
 */
void memfile_notifier_zap(struct address_space *mapping, pgoff_t start,
			  pgoff_t end)
{
	struct memfile_node *node = memfile_node(mapping);
	struct memfile_binding *binding;

	if (!node || WARN_ON_ONCE(start >= end))
		return;

	down_read(&node->sem);
	for_each_binding(binding, node, start, end)
		binding->ops->zap(binding, max(start, binding->range.start),
				  min(end, binding->range.last + 1));
	up_read(&node->sem);
	trace_memfile_zap(mapping->host, start, end);
}

/**
 * memfile_evict - the inode goes away
 * @mapping: of the file; holds no folio any more
 *
 * A binding pins the file, so there is none.
 */
void memfile_evict(struct address_space *mapping)
{
	struct memfile_node *node = memfile_node(mapping);

	if (!node)
		return;

	WARN_ON_ONCE(!RB_EMPTY_ROOT(&node->bindings.rb_root));
	WARN_ON_ONCE(!memfile_is_empty(mapping));
	list_del(&node->entry);
	kfree(node);
}
