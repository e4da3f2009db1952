/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM memfile

#if !defined(_TRACE_MEMFILE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_MEMFILE_H

#include <linux/fs.h>
#include <linux/memfile_notifier.h>
#include <linux/tracepoint.h>

TRACE_DEFINE_ENUM(MEMFILE_ALLOCATED);
TRACE_DEFINE_ENUM(MEMFILE_FREED);

/* Ranges are [start, end) in pages of the file. */
DECLARE_EVENT_CLASS(memfile_range,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end),
	TP_ARGS(inode, start, end),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
	),
	TP_fast_assign(
		__entry->ino = inode->i_ino;
		__entry->start = start;
		__entry->end = end;
	),
	TP_printk("ino=%lu range=[0x%lx, 0x%lx)", __entry->ino,
		  __entry->start, __entry->end)
);

DEFINE_EVENT(memfile_range, memfile_unbind,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end),
	TP_ARGS(inode, start, end)
);

DEFINE_EVENT(memfile_range, memfile_zap,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end),
	TP_ARGS(inode, start, end)
);

TRACE_EVENT(memfile_bind,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end, u64 owner,
		 int error),
	TP_ARGS(inode, start, end, owner, error),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(u64, owner)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->ino = inode->i_ino;
		__entry->start = start;
		__entry->end = end;
		__entry->owner = owner;
		__entry->error = error;
	),
	TP_printk("ino=%lu range=[0x%lx, 0x%lx) owner=%llu error=%d",
		  __entry->ino, __entry->start, __entry->end, __entry->owner,
		  __entry->error)
);

DECLARE_EVENT_CLASS(memfile_invalidate,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end, int event),
	TP_ARGS(inode, start, end, event),
	TP_STRUCT__entry(
		__field(unsigned long, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(int, event)
	),
	TP_fast_assign(
		__entry->ino = inode->i_ino;
		__entry->start = start;
		__entry->end = end;
		__entry->event = event;
	),
	TP_printk("ino=%lu range=[0x%lx, 0x%lx) %s", __entry->ino,
		  __entry->start, __entry->end,
		  __print_symbolic(__entry->event,
				   { MEMFILE_ALLOCATED, "allocated" },
				   { MEMFILE_FREED, "freed" }))
);

DEFINE_EVENT(memfile_invalidate, memfile_invalidate_start,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end, int event),
	TP_ARGS(inode, start, end, event)
);

DEFINE_EVENT(memfile_invalidate, memfile_invalidate_end,
	TP_PROTO(struct inode *inode, pgoff_t start, pgoff_t end, int event),
	TP_ARGS(inode, start, end, event)
);

#endif /* _TRACE_MEMFILE_H */

#include <trace/define_trace.h>
