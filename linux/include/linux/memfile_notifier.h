/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_MEMFILE_NOTIFIER_H
#define _LINUX_MEMFILE_NOTIFIER_H

#include <linux/fs.h>
#include <linux/interval_tree.h>
#include <linux/pagemap.h>
#include <linux/types.h>

/*
 * memfile_notifier connects the backing store of an inaccessible memfd (shmem,
 * hugetlbfs) with a consumer that maps its pages without a VMA (KVM).
 *
 * A consumer binds a range of a file. From then on
 *  - it asks the store for pages (struct memfile_pfn_ops), and
 *  - the store tells it of every change of what is allocated in the range
 *    (struct memfile_notifier_ops).
 * A page is private exactly when it is allocated in the file. Nothing here
 * keeps a second record of that.
 *
 * Unless said otherwise ranges are [start, end) in units of pages of the file
 * (pgoff_t), also on hugetlbfs.
 *
 * Lock order, outermost first:
 *
 *   kvm->slots_lock
 *     inode->i_rwsem		bind, unbind, and the whole of start ... end
 *       hugetlb fault mutex	when a file on hugetlbfs is sealed
 *         folio lock
 *           memfile_node->sem	written by bind and unbind, read inside start,
 *				inside end and inside memory failure
 *             kvm->mmu_lock
 */

struct memfile_binding;

/**
 * enum memfile_event - what happens to a range between start and end
 * @MEMFILE_ALLOCATED: holes become allocated, i.e. private
 * @MEMFILE_FREED: allocated pages become holes, i.e. shared
 */
enum memfile_event {
	MEMFILE_ALLOCATED,
	MEMFILE_FREED,
};

/**
 * struct memfile_notifier_ops - what a backing store tells a consumer
 *
 * Every callback runs with the node's semaphore held, for read or write, which
 * keeps the binding, and with it the consumer, alive: it needs no reference of
 * its own, and must not take one that it might have to drop as the last.
 * Callbacks may sleep, but must not allocate memory in a way that can enter
 * reclaim, touch user memory, wait for a grace period, or take mmap_lock, a
 * folio lock or a lock that is held around memfile_bind().
 *
 * @start and @end are clipped to the range of @binding.
 */
struct memfile_notifier_ops {
	/**
	 * @invalidate_start: the allocation state of [@start, @end) is about to
	 * change as @event says. On return nothing may be mapped that the
	 * change makes wrong (%MEMFILE_ALLOCATED: the other, shared half;
	 * %MEMFILE_FREED: pages of the file), and no mapping that overlaps the
	 * range may be made until @invalidate_end. There may be pages in the
	 * range that are what they become already: they do not change. Called
	 * under the inode lock, which stays held until the matching
	 * @invalidate_end has returned.
	 */
	void (*invalidate_start)(struct memfile_binding *binding, pgoff_t start,
				 pgoff_t end, enum memfile_event event);
	/**
	 * @invalidate_end: the change is complete. Called exactly once, with
	 * the same arguments, for each @invalidate_start. A page looked up
	 * before this call must not be mapped after it.
	 */
	void (*invalidate_end)(struct memfile_binding *binding, pgoff_t start,
			       pgoff_t end, enum memfile_event event);
	/**
	 * @zap: drop all mappings of the pages [@start, @end) of the file. The
	 * pages stay allocated; a page looked up before this call must not be
	 * mapped after it. For memory failure: called under the folio lock and
	 * without the inode lock, possibly between a start and its end. And
	 * the last call to a binding, from memfile_unbind(): there the
	 * semaphore is held for write.
	 */
	void (*zap)(struct memfile_binding *binding, pgoff_t start,
		    pgoff_t end);
};

/**
 * struct memfile_pfn_ops - what a consumer asks of a backing store
 */
struct memfile_pfn_ops {
	/**
	 * @get_pfn: find the page that is allocated at @index. Never allocates
	 * in the file, though it may read the page back from swap, and zeroes
	 * it at its first use. Stores in *@page the page, with a reference that
	 * the caller drops with put_page(), and in *@order the order of the
	 * naturally aligned block of pages around @index that is physically
	 * contiguous with it; it may be used for mappings of that size as long
	 * as no end or zap has intervened. May sleep; takes the folio lock.
	 * Return: 0; -ENOENT if the page is not allocated; -EHWPOISON if its
	 * memory has failed; -EIO if it could not be read back; -ENOMEM.
	 */
	int (*get_pfn)(struct file *file, pgoff_t index, struct page **page,
		       unsigned int *order);
};

/*
 * Backing stores, as bits of the mask of memfile_backing_stores(), which is what
 * KVM_CAP_PRIVATE_MEM answers: these values are ABI.
 */
#define MEMFILE_STORE_SHMEM	BIT(0)
#define MEMFILE_STORE_HUGETLBFS	BIT(1)

/**
 * struct memfile_backing_store - a kind of file that can be bound
 * @list: in the table of stores
 * @id: one of MEMFILE_STORE_*
 * @pfn_ops: its services
 * @owns: whether @file is an inaccessible file of this store; the answer counts
 *        under the inode lock
 */
struct memfile_backing_store {
	struct list_head list;
	unsigned long id;
	struct memfile_pfn_ops pfn_ops;
	bool (*owns)(struct file *file);
};

/**
 * struct memfile_binding - a range of a file bound to a consumer
 * @range: [start, last] in pages, in the tree of @node
 * @node: the bindings of the file, valid while bound
 * @file: pinned while bound
 * @ops: the consumer's callbacks
 * @pfn_ops: the store's services
 * @claimed: the content was nobody's before, see memfile_undo_bind()
 *
 * Embedded in the consumer's object. All fields are set by memfile_bind() and
 * constant until memfile_unbind().
 */
struct memfile_binding {
	struct interval_tree_node range;
	struct memfile_node *node;
	struct file *file;
	const struct memfile_notifier_ops *ops;
	const struct memfile_pfn_ops *pfn_ops;
	bool claimed;
};

#ifdef CONFIG_MEMFILE_NOTIFIER

/* For consumers. */
u64 memfile_new_owner(void);
int memfile_bind(struct memfile_binding *binding, struct file *file,
		 pgoff_t start, unsigned long nr, u64 owner,
		 const struct memfile_notifier_ops *ops);
void memfile_unbind(struct memfile_binding *binding);
void memfile_undo_bind(struct memfile_binding *binding);
unsigned long memfile_backing_stores(void);

/* For backing stores. */
void memfile_register_backing_store(struct memfile_backing_store *store);
void memfile_notifier_start(struct address_space *mapping, pgoff_t start,
			    pgoff_t end, enum memfile_event event);
void memfile_notifier_end(struct address_space *mapping, pgoff_t start,
			  pgoff_t end, enum memfile_event event);
void memfile_notifier_zap(struct address_space *mapping, pgoff_t start,
			  pgoff_t end);
void memfile_evict(struct address_space *mapping);

#else

static inline void
memfile_register_backing_store(struct memfile_backing_store *store)
{
}

static inline void memfile_notifier_start(struct address_space *mapping,
					  pgoff_t start, pgoff_t end,
					  enum memfile_event event)
{
}

static inline void memfile_notifier_end(struct address_space *mapping,
					pgoff_t start, pgoff_t end,
					enum memfile_event event)
{
}

static inline void memfile_notifier_zap(struct address_space *mapping,
					pgoff_t start, pgoff_t end)
{
}

static inline void memfile_evict(struct address_space *mapping)
{
}

#endif /* CONFIG_MEMFILE_NOTIFIER */

#endif /* _LINUX_MEMFILE_NOTIFIER_H */
