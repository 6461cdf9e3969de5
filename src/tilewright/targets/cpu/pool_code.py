"""The worker pool's own machine code, as LLVM text.

Shared state is one block of memory (offsets below). The word at offset 0 says which launch is open
and how many of its programs nobody has claimed yet, in one 64-bit value: a tag that grows by one
with every opened launch, and a 28-bit count. A worker

1. reads the word; a count of zero means there is nothing to claim;
2. reads the open launch (function, arguments, programs), which nobody changes while the word keeps
   its value;
3. claims programs by compare-and-swap on the word. Success proves that the launch it read is still
   open; a worker that was asleep meanwhile fails, whatever it read, and starts over;
4. runs them and adds their number to ``done``. Whoever completes the launch opens the next one, and
   runs launches too small to share right away, so they cost the others nothing.

Nobody waits for a worker that claimed nothing: a thread the system has put aside delays a launch at
most by the programs it holds. A claim takes a fixed share of what is left, so claims shrink towards
the end of a launch and the threads finish together.

Waiting: spin with ``pause``; then give the core away between looks; then park on a futex (Linux) or
in short sleeps (elsewhere). To park, a thread reads the wake counter, raises the ``parked`` flag,
looks once more, and waits for the counter to change; whoever opens a launch and sees the flag
lowers it and moves the counter, so no wake-up is lost.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["CONTROL_BYTES", "COUNT_BITS", "OFFSETS", "SYMBOLS", "pool_llvm"]

COUNT_BITS: Final = 28  # programs per launch; the other 36 bits are the tag
CONTROL_BYTES: Final = 256

# Byte offsets in the control block. The first cache line holds what a worker reads to claim work.
OFFSETS: Final = {
    "word": 0,
    "function": 8,
    "arguments": 16,
    "programs": 24,
    "smallest": 32,
    "stop": 40,
    "finished": 48,
    "wake": 56,
    "done": 64,
    "parked": 128,
    "caller_parked": 136,
    "table": 192,
    "entries": 200,
    "entry": 208,
    "share": 216,
    "spins": 224,
    "idle": 232,
    "patience": 240,
}

SYMBOLS: Final = (
    "tilewright_run",
    "tilewright_worker",
    "tilewright_serial",
    "tilewright_stop",
    "tilewright_spin",
)

_BODY: Final = r"""
declare i32 @YIELD_NAME()

define internal void @pause() alwaysinline {
  PAUSE
  ret void
}

define void @tilewright_spin(i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void @pause()
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

; One thread alone: every launch in turn, no shared state.
define void @tilewright_serial(ptr %table, i64 %entries) {
entry:
  %any = icmp ne i64 %entries, 0
  br i1 %any, label %loop, label %exit
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %step ]
  %row = getelementptr [4 x i64], ptr %table, i64 %i
  %function = load ptr, ptr %row
  %p1 = getelementptr i64, ptr %row, i64 1
  %arguments = load ptr, ptr %p1
  %p2 = getelementptr i64, ptr %row, i64 2
  %n = load i64, ptr %p2
  %empty = icmp sle i64 %n, 0
  br i1 %empty, label %step, label %call
call:
  call void %function(ptr %arguments, i64 0, i64 %n)
  br label %step
step:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %entries
  br i1 %more, label %loop, label %exit
exit:
  ret void
}

define internal void @wake_all(ptr %c) noinline {
  %parked = getelementptr i8, ptr %c, i64 @parked
  %caller_parked = getelementptr i8, ptr %c, i64 @caller_parked
  %wake = getelementptr i8, ptr %c, i64 @wake
  %f1 = atomicrmw xchg ptr %parked, i64 0 seq_cst
  %f2 = atomicrmw xchg ptr %caller_parked, i64 0 seq_cst
  %w = atomicrmw add ptr %wake, i32 1 seq_cst
  WAKE
  ret void
}

; Opens the next launch from entry %first on, under tag %tag + 1. Only one thread is ever in here.
define internal void @advance(ptr %c, i64 %tag, i64 %first) noinline {
entry:
  %p.table = getelementptr i8, ptr %c, i64 @table
  %table = load ptr, ptr %p.table
  %p.entries = getelementptr i8, ptr %c, i64 @entries
  %entries = load i64, ptr %p.entries
  br label %loop
loop:
  %e = phi i64 [ %first, %entry ], [ %e.next, %skip ], [ %e.next, %inline ]
  %e.next = add i64 %e, 1
  %at.end = icmp uge i64 %e, %entries
  br i1 %at.end, label %finish, label %look
look:
  %row = getelementptr [4 x i64], ptr %table, i64 %e
  %function = load ptr, ptr %row
  %p1 = getelementptr i64, ptr %row, i64 1
  %arguments = load ptr, ptr %p1
  %p2 = getelementptr i64, ptr %row, i64 2
  %n = load i64, ptr %p2
  %p3 = getelementptr i64, ptr %row, i64 3
  %smallest = load i64, ptr %p3
  %empty = icmp sle i64 %n, 0
  br i1 %empty, label %skip, label %size
skip:
  br label %loop
size:
  %is.one = icmp sle i64 %n, 1
  %is.small = icmp sle i64 %n, %smallest
  %alone = or i1 %is.one, %is.small
  br i1 %alone, label %inline, label %open
inline:
  call void %function(ptr %arguments, i64 0, i64 %n)
  br label %loop
open:
  %q1 = getelementptr i8, ptr %c, i64 @function
  store atomic ptr %function, ptr %q1 monotonic, align 8
  %q2 = getelementptr i8, ptr %c, i64 @arguments
  store atomic ptr %arguments, ptr %q2 monotonic, align 8
  %q3 = getelementptr i8, ptr %c, i64 @programs
  store atomic i64 %n, ptr %q3 monotonic, align 8
  %q4 = getelementptr i8, ptr %c, i64 @smallest
  store atomic i64 %smallest, ptr %q4 monotonic, align 8
  %p.done = getelementptr i8, ptr %c, i64 @done
  store atomic i64 0, ptr %p.done monotonic, align 8
  %p.entry = getelementptr i8, ptr %c, i64 @entry
  store i64 %e, ptr %p.entry
  %tag.next = add i64 %tag, 1
  %high = shl i64 %tag.next, COUNT_BITS
  %word = or i64 %high, %n
  %old = atomicrmw xchg ptr %c, i64 %word seq_cst
  %p.parked = getelementptr i8, ptr %c, i64 @parked
  %parked = load atomic i64, ptr %p.parked seq_cst, align 8
  %any = icmp ne i64 %parked, 0
  br i1 %any, label %wake, label %exit
finish:
  %p.finished = getelementptr i8, ptr %c, i64 @finished
  %old2 = atomicrmw xchg ptr %p.finished, i64 1 seq_cst
  %p.caller = getelementptr i8, ptr %c, i64 @caller_parked
  %caller = load atomic i64, ptr %p.caller seq_cst, align 8
  %caller.waits = icmp ne i64 %caller, 0
  br i1 %caller.waits, label %wake, label %exit
wake:
  call void @wake_all(ptr %c)
  br label %exit
exit:
  ret void
}

; Claims and runs some programs. 0: there was nothing to claim.
define internal i1 @work(ptr %c) alwaysinline {
entry:
  %q1 = getelementptr i8, ptr %c, i64 @function
  %q2 = getelementptr i8, ptr %c, i64 @arguments
  %q3 = getelementptr i8, ptr %c, i64 @programs
  %q4 = getelementptr i8, ptr %c, i64 @smallest
  %p.share = getelementptr i8, ptr %c, i64 @share
  %share = load i64, ptr %p.share
  %p.done = getelementptr i8, ptr %c, i64 @done
  br label %look
look:
  %word = load atomic i64, ptr %c acquire, align 8
  %left = and i64 %word, COUNT_MASK
  %none = icmp eq i64 %left, 0
  br i1 %none, label %nothing, label %claim
claim:
  %function = load atomic ptr, ptr %q1 monotonic, align 8
  %arguments = load atomic ptr, ptr %q2 monotonic, align 8
  %n = load atomic i64, ptr %q3 monotonic, align 8
  %smallest = load atomic i64, ptr %q4 monotonic, align 8
  %left32 = trunc i64 %left to i32
  %share32 = trunc i64 %share to i32
  %part32 = udiv i32 %left32, %share32
  %part = zext i32 %part32 to i64
  %low = call i64 @llvm.smax.i64(i64 %part, i64 %smallest)
  %low1 = call i64 @llvm.smax.i64(i64 %low, i64 1)
  %take = call i64 @llvm.smin.i64(i64 %low1, i64 %left)
  %after = sub i64 %word, %take
  %pair = cmpxchg ptr %c, i64 %word, i64 %after acq_rel monotonic
  %got = extractvalue { i64, i1 } %pair, 1
  br i1 %got, label %run, label %look
run:
  %lo = sub i64 %n, %left
  %hi = add i64 %lo, %take
  call void %function(ptr %arguments, i64 %lo, i64 %hi)
  %before = atomicrmw add ptr %p.done, i64 %take acq_rel
  %now = add i64 %before, %take
  %complete = icmp eq i64 %now, %n
  br i1 %complete, label %next, label %something
next:
  %tag = lshr i64 %word, COUNT_BITS
  %p.entry = getelementptr i8, ptr %c, i64 @entry
  %e = load i64, ptr %p.entry
  %e1 = add i64 %e, 1
  call void @advance(ptr %c, i64 %tag, i64 %e1)
  br label %something
something:
  ret i1 true
nothing:
  ret i1 false
}

; A moment of waiting: the %count-th in a row.
define internal void @relax(ptr %c, i64 %count) alwaysinline {
entry:
  %p.spins = getelementptr i8, ptr %c, i64 @spins
  %spins = load i64, ptr %p.spins
  %early = icmp ult i64 %count, %spins
  br i1 %early, label %spin, label %yield
spin:
  call void @pause()
  br label %exit
yield:
  %r = call i32 @YIELD_NAME()
  br label %exit
exit:
  ret void
}

; Sleeps until somebody moves the wake counter (or a little while, where there is no futex).
; The caller of a run is parked under its own flag as well, %caller = 1, so that the end wakes it.
define internal void @park(ptr %c, i64 %caller) noinline {
entry:
  %p.wake = getelementptr i8, ptr %c, i64 @wake
  %p.parked = getelementptr i8, ptr %c, i64 @parked
  %p.caller = getelementptr i8, ptr %c, i64 @caller_parked
  %p.stop = getelementptr i8, ptr %c, i64 @stop
  %p.finished = getelementptr i8, ptr %c, i64 @finished
  %seen = load atomic i32, ptr %p.wake seq_cst, align 4
  %f1 = atomicrmw xchg ptr %p.parked, i64 1 seq_cst
  %is.caller = icmp ne i64 %caller, 0
  br i1 %is.caller, label %flag, label %again
flag:
  %f2 = atomicrmw xchg ptr %p.caller, i64 1 seq_cst
  %finished = load atomic i64, ptr %p.finished seq_cst, align 8
  %over = icmp ne i64 %finished, 0
  br i1 %over, label %exit, label %again
again:
  %word = load atomic i64, ptr %c seq_cst, align 8
  %left = and i64 %word, COUNT_MASK
  %some = icmp ne i64 %left, 0
  %stop = load atomic i64, ptr %p.stop seq_cst, align 8
  %stopped = icmp ne i64 %stop, 0
  %worker.stopped = select i1 %is.caller, i1 false, i1 %stopped
  %leave = or i1 %some, %worker.stopped
  br i1 %leave, label %exit, label %sleep
sleep:
  WAIT
  br label %exit
exit:
  ret void
}

define void @tilewright_worker(ptr %c) {
entry:
  %p.stop = getelementptr i8, ptr %c, i64 @stop
  %p.finished = getelementptr i8, ptr %c, i64 @finished
  %p.idle = getelementptr i8, ptr %c, i64 @idle
  %p.patience = getelementptr i8, ptr %c, i64 @patience
  br label %loop
loop:
  %count = phi i64 [ 0, %entry ], [ 0, %loop ], [ 0, %parked ], [ %count.next, %wait ]
  %did = call i1 @work(ptr %c)
  br i1 %did, label %loop, label %idle
idle:
  %stop = load atomic i64, ptr %p.stop monotonic, align 8
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %exit, label %decide
decide:
  %finished = load atomic i64, ptr %p.finished monotonic, align 8
  %resting = icmp ne i64 %finished, 0
  %idle.limit = load i64, ptr %p.idle
  %patience = load i64, ptr %p.patience
  %limit = select i1 %resting, i64 %idle.limit, i64 %patience
  %count.next = add i64 %count, 1
  %enough = icmp ugt i64 %count, %limit
  br i1 %enough, label %parked, label %wait
wait:
  call void @relax(ptr %c, i64 %count)
  br label %loop
parked:
  call void @park(ptr %c, i64 0)
  br label %loop
exit:
  ret void
}

; Runs a table; the calling thread works too and returns when every launch has completed.
define void @tilewright_run(ptr %c, ptr %table, i64 %entries) {
entry:
  %p.table = getelementptr i8, ptr %c, i64 @table
  store ptr %table, ptr %p.table
  %p.entries = getelementptr i8, ptr %c, i64 @entries
  store i64 %entries, ptr %p.entries
  %p.finished = getelementptr i8, ptr %c, i64 @finished
  store atomic i64 0, ptr %p.finished release, align 8
  %p.patience = getelementptr i8, ptr %c, i64 @patience
  %patience = load i64, ptr %p.patience
  %word = load atomic i64, ptr %c acquire, align 8
  %tag = lshr i64 %word, COUNT_BITS
  call void @advance(ptr %c, i64 %tag, i64 0)
  br label %loop
loop:
  %count = phi i64 [ 0, %entry ], [ 0, %loop ], [ 0, %parked ], [ %count.next, %wait ]
  %did = call i1 @work(ptr %c)
  br i1 %did, label %loop, label %idle
idle:
  %finished = load atomic i64, ptr %p.finished acquire, align 8
  %over = icmp ne i64 %finished, 0
  br i1 %over, label %exit, label %decide
decide:
  %count.next = add i64 %count, 1
  %enough = icmp ugt i64 %count, %patience
  br i1 %enough, label %parked, label %wait
wait:
  call void @relax(ptr %c, i64 %count)
  br label %loop
parked:
  call void @park(ptr %c, i64 1)
  br label %loop
exit:
  ret void
}

; Sends the workers home. A run in progress completes: its caller needs no worker.
define void @tilewright_stop(ptr %c) {
  %p.stop = getelementptr i8, ptr %c, i64 @stop
  store atomic i64 1, ptr %p.stop seq_cst, align 8
  call void @wake_all(ptr %c)
  ret void
}

declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)
"""

_FUTEX_NUMBER: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98}


def pool_llvm(arch: str, platform: str = sys.platform, futex: bool = True) -> str:
    """The pool's LLVM text for a CPU family (``x86_64``) and a ``sys.platform``.

    ``futex=False`` parks by sleeping, as platforms without futexes do.
    """
    declarations = []
    if arch == "x86_64":
        pause = "call void @llvm.x86.sse2.pause()"
        declarations.append("declare void @llvm.x86.sse2.pause()")
    elif arch == "aarch64":
        pause = "call void @llvm.aarch64.hint(i32 1)"
        declarations.append("declare void @llvm.aarch64.hint(i32)")
    else:
        pause = ""
    if platform == "linux" and futex and arch in _FUTEX_NUMBER:
        number = _FUTEX_NUMBER[arch]
        declarations.append("declare i64 @syscall(i64, ...)")
        call = f"%r = call i64 (i64, ...) @syscall(i64 {number}, ptr "
        # Private futex operations: 128 is wait, 129 is wake.
        wait = call + "%p.wake, i32 128, i32 %seen, ptr null, ptr null, i32 0)"
        wake = call + "%wake, i32 129, i32 2147483647, ptr null, ptr null, i32 0)"
    elif platform == "win32":
        declarations.append("declare void @Sleep(i32)")
        wait, wake = "call void @Sleep(i32 1)", ""
    else:
        declarations.append("declare i32 @usleep(i32)")
        wait, wake = "%r = call i32 @usleep(i32 200)", ""
    text = _BODY.replace("YIELD_NAME", "SwitchToThread" if platform == "win32" else "sched_yield")
    text = text.replace("PAUSE", pause).replace("WAIT", wait).replace("WAKE", wake)
    text = text.replace("COUNT_BITS", str(COUNT_BITS))
    text = text.replace("COUNT_MASK", str((1 << COUNT_BITS) - 1))
    for name, offset in OFFSETS.items():
        text = text.replace(f"i64 @{name}\n", f"i64 {offset}\n")
    return "\n".join([*declarations, text])
