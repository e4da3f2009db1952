// SPDX-License-Identifier: GPL-2.0
/*
 * Guest private memory from inaccessible memfds (KVM_MEM_PRIVATE).
 *
 * A slot has two halves: the shared one is userspace_addr, the private one a
 * range of a file. The file alone says which half a gfn is: private if the page
 * is allocated, shared if not. KVM asks it, under kvm->srcu or mmu_lock, and
 * never writes the answer down.
 *
 * The answer may be stale as soon as it is given. What keeps a mapping from
 * outliving it is the usual protocol: a fault takes a snapshot of
 * mmu_invalidate_seq, asks, and has to start over if an invalidation has come
 * in between. The store brackets each change by invalidate_start() and
 * invalidate_end(), see include/linux/memfile_notifier.h. Accesses by KVM itself
 * hold a reference to the page instead: one that has begun before a change may
 * finish on the old half, one that begins after it uses the new one.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/kvm_host.h>
#include <linux/memfd.h>
#include <linux/memfile_notifier.h>

#include <trace/events/kvm.h>

#include "kvm_mm.h"

/*
 * Lives from bind to unbind. The slot can't change meanwhile: slots of this kind
 * are only created and deleted.
 */
struct kvm_memfile {
	struct memfile_binding binding;
	struct kvm *kvm;
	struct kvm_memory_slot *slot;
};

static struct kvm_memfile *to_kvm_memfile(struct memfile_binding *binding)
{
	return container_of(binding, struct kvm_memfile, binding);
}

static pgoff_t gfn_to_pgoff(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	/* Or the end of the slot, as that of a range. */
	VM_WARN_ON_ONCE(gfn < slot->base_gfn ||
			gfn > slot->base_gfn + slot->npages);
	return gfn - slot->base_gfn + slot->memfile->binding.range.start;
}

static gfn_t pgoff_to_gfn(const struct kvm_memfile *memfile, pgoff_t index)
{
	return index - memfile->binding.range.start + memfile->slot->base_gfn;
}

static void kvm_memfile_unmap_range(struct kvm_memfile *memfile, pgoff_t start,
				    pgoff_t end,
				    enum kvm_gfn_range_filter filter)
{
	struct kvm *kvm = memfile->kvm;
	struct kvm_gfn_range range = {
		.slot = memfile->slot,
		.start = pgoff_to_gfn(memfile, start),
		.end = pgoff_to_gfn(memfile, end),
		.attr_filter = filter,
		.may_block = true,
	};

	kvm_mmu_invalidate_begin(kvm);
	if (kvm_mmu_unmap_gfn_range(kvm, &range))
		kvm_flush_remote_tlbs(kvm);
}

/*
 * Only the half that ceases to be valid is zapped. New mappings of it can't
 * come up before invalidate_end(): faults in the range are retried, and huge
 * mappings of neighbours stay clear of it, see kvm_memfile_max_level().
 */
static void kvm_memfile_invalidate_start(struct memfile_binding *binding,
					 pgoff_t start, pgoff_t end,
					 enum memfile_event event)
{
	struct kvm_memfile *memfile = to_kvm_memfile(binding);
	struct kvm *kvm = memfile->kvm;

	KVM_MMU_LOCK(kvm);
	kvm_memfile_unmap_range(memfile, start, end,
				event == MEMFILE_ALLOCATED ? KVM_FILTER_SHARED :
							     KVM_FILTER_PRIVATE);
	KVM_MMU_UNLOCK(kvm);
}

static void kvm_memfile_invalidate_end(struct memfile_binding *binding,
				       pgoff_t start, pgoff_t end,
				       enum memfile_event event)
{
	struct kvm *kvm = to_kvm_memfile(binding)->kvm;

	KVM_MMU_LOCK(kvm);
	kvm_mmu_invalidate_end(kvm);
	KVM_MMU_UNLOCK(kvm);

	atomic64_inc(&kvm->stat.generic.private_conversions);
}

static void kvm_memfile_zap(struct memfile_binding *binding, pgoff_t start,
			    pgoff_t end)
{
	struct kvm_memfile *memfile = to_kvm_memfile(binding);
	struct kvm *kvm = memfile->kvm;

	KVM_MMU_LOCK(kvm);
	kvm_memfile_unmap_range(memfile, start, end, KVM_FILTER_PRIVATE);
	kvm_mmu_invalidate_end(kvm);
	KVM_MMU_UNLOCK(kvm);
}

static const struct memfile_notifier_ops kvm_memfile_ops = {
	.invalidate_start	= kvm_memfile_invalidate_start,
	.invalidate_end		= kvm_memfile_invalidate_end,
	.zap			= kvm_memfile_zap,
};

/*
 * Bind bytes [offset, offset + size of the slot) of a file to a new slot, which
 * nobody can see yet.
 */
int kvm_memfile_bind(struct kvm *kvm, struct kvm_memory_slot *slot,
		     unsigned int fd, u64 offset)
{
	struct kvm_memfile *memfile;
	struct file *file;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	file = fget(fd);
	if (!file)
		return -EBADF;

	memfile = kzalloc(sizeof(*memfile), GFP_KERNEL_ACCOUNT);
	if (!memfile) {
		r = -ENOMEM;
		goto out;
	}

	if (!kvm->memfile_owner)
		kvm->memfile_owner = memfile_new_owner();

	/* From here on the callbacks may come. */
	memfile->kvm = kvm;
	memfile->slot = slot;
	slot->memfile = memfile;
	r = memfile_bind(&memfile->binding, file, offset >> PAGE_SHIFT,
			 slot->npages, kvm->memfile_owner, &kvm_memfile_ops);
	if (r) {
		slot->memfile = NULL;
		kfree(memfile);
	}
out:
	fput(file);
	return r;
}

/* The slot that kvm_memfile_bind() was for does not come into use. */
void kvm_memfile_undo_bind(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct kvm_memfile *memfile = slot->memfile;

	lockdep_assert_held(&kvm->slots_lock);

	memfile_undo_bind(&memfile->binding);
	slot->memfile = NULL;
	kfree(memfile);
}

/*
 * Either the slot is out of use and kvm->srcu synchronized, or the VM is being
 * destroyed: there is nobody left who could look at slot->memfile.
 */
void kvm_memfile_unbind(struct kvm_memory_slot *slot)
{
	struct kvm_memfile *memfile = slot->memfile;

	if (!memfile)
		return;

	memfile_unbind(&memfile->binding);
	slot->memfile = NULL;
	kfree(memfile);
}

/*
 * The file doesn't pin the VM, so conversions go on while the VM dies. Be done
 * with them before the MMU and the notifier state they use are torn down.
 */
void kvm_memfile_unbind_all(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int i, bkt;

	for (i = 0; i < kvm_arch_nr_memslot_as_ids(kvm); i++)
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, i))
			kvm_memfile_unbind(slot);
}

/*
 * Whether a page in [@start, @end), inside the slot, is private. A slot that is
 * on its way out, or in, has no file any more; deny rather than guess.
 */
bool kvm_memfile_has_private(const struct kvm_memory_slot *slot, gfn_t start,
			     gfn_t end)
{
	pgoff_t first, last;

	if (!slot->memfile)
		return true;

	first = gfn_to_pgoff(slot, start);
	last = gfn_to_pgoff(slot, end);
	return memfd_next_allocated(slot->memfile->binding.file->f_mapping,
				    first, last) < last;
}

/*
 * Look up the private page of @gfn.  The caller drops the reference to it.  May
 * sleep. -ENOENT says that the page is shared.
 */
int kvm_memfile_get_page(const struct kvm_memory_slot *slot, gfn_t gfn,
			 struct page **page, unsigned int *order)
{
	struct memfile_binding *binding;

	if (!kvm_slot_is_memfile(slot) || !slot->memfile)
		return -EFAULT;

	binding = &slot->memfile->binding;
	return binding->pfn_ops->get_pfn(binding->file, gfn_to_pgoff(slot, gfn),
					 page, order);
}

/* As kvm_memfile_get_page(), to map the page; for kvm_release_pfn_clean(). */
int kvm_memfile_get_pfn(struct kvm *kvm, const struct kvm_memory_slot *slot,
			gfn_t gfn, kvm_pfn_t *pfn, unsigned int *order)
{
	struct page *page;
	int r;

	r = kvm_memfile_get_page(slot, gfn, &page, order);
	if (!r) {
		*pfn = page_to_pfn(page);
		atomic64_inc(&kvm->stat.generic.private_faults);
	}
	trace_kvm_memfile_get_pfn(gfn, r ? KVM_PFN_ERR_FAULT : *pfn,
				  r ? 0 : *order, r);
	return r;
}

/*
 * KVM's own accesses to a private page: within one page, may sleep. They return
 * -ENOENT if the page is shared, another error if it can't be accessed.
 */
static void *kvm_memfile_map(const struct kvm_memory_slot *slot, gfn_t gfn,
			     struct page **page)
{
	unsigned int order;
	int r;

	r = kvm_memfile_get_page(slot, gfn, page, &order);
	return r ? ERR_PTR(r) : kmap_local_page(*page);
}

static void kvm_memfile_unmap(struct page *page, void *va)
{
	kunmap_local(va);
	put_page(page);
}

int kvm_memfile_read(const struct kvm_memory_slot *slot, gfn_t gfn, void *data,
		     unsigned int offset, unsigned int len)
{
	struct page *page;
	void *va;

	va = kvm_memfile_map(slot, gfn, &page);
	if (IS_ERR(va))
		return PTR_ERR(va);

	memcpy(data, va + offset, len);
	kvm_memfile_unmap(page, va);
	return 0;
}

int kvm_memfile_write(const struct kvm_memory_slot *slot, gfn_t gfn,
		      const void *data, unsigned int offset, unsigned int len)
{
	struct page *page;
	void *va;

	va = kvm_memfile_map(slot, gfn, &page);
	if (IS_ERR(va))
		return PTR_ERR(va);

	memcpy(va + offset, data, len);
	kvm_memfile_unmap(page, va);
	return 0;
}

/*
 * Replace @old by @new, both of @len bytes, as one atomic operation. Returns 1,
 * with the current value in @old, if that was not @old.
 */
int kvm_memfile_cmpxchg(const struct kvm_memory_slot *slot, gfn_t gfn,
			unsigned int offset, void *old, const void *new,
			unsigned int len)
{
	struct page *page;
	bool done;
	void *va;

	va = kvm_memfile_map(slot, gfn, &page);
	if (IS_ERR(va))
		return PTR_ERR(va);

	switch (len) {
	case 1:
		done = try_cmpxchg((u8 *)(va + offset), (u8 *)old, *(u8 *)new);
		break;
	case 2:
		done = try_cmpxchg((u16 *)(va + offset), (u16 *)old, *(u16 *)new);
		break;
	case 4:
		done = try_cmpxchg((u32 *)(va + offset), (u32 *)old, *(u32 *)new);
		break;
	case 8:
		done = try_cmpxchg((u64 *)(va + offset), (u64 *)old, *(u64 *)new);
		break;
	default:
		WARN_ON_ONCE(1);
		kvm_memfile_unmap(page, va);
		return -EINVAL;
	}

	kvm_memfile_unmap(page, va);
	return !done;
}
