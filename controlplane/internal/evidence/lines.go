package evidence

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"

	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"
)

// batchLines and batchBytes end a batch, whichever comes first.
const (
	batchLines = 512
	batchBytes = 1 << 20
)

// lines reads a bundle line by line and hashes what it has read.
type lines struct {
	r    *bufio.Reader
	sum  hash.Hash
	line int64
	buf  []byte
}

// next is the next line without its end, valid until the next call.
func (l *lines) next() ([]byte, error) {
	l.buf = l.buf[:0]
	var err error
	if l.buf, err = l.into(l.buf); err != nil {
		return nil, err
	}
	return l.buf, nil
}

// into appends the next line, without its end.
func (l *lines) into(buf []byte) ([]byte, error) {
	l.line++
	begin := len(buf)
	for {
		part, err := l.r.ReadSlice('\n')
		buf = append(buf, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				return nil, malformed(l.line, "the bundle ends here: it was cut short")
			}
			return nil, fmt.Errorf("read the bundle: %w", err)
		}
		if len(buf)-begin > maxLine {
			return nil, malformed(l.line, "it is longer than %d bytes", maxLine)
		}
	}
	l.sum.Write(buf[begin:])
	return buf[:len(buf)-1], nil
}

// read is one record of a bundle, read and hashed.
type read struct {
	entry
	leaf tlog.Hash
	bad  error // it is no record
}

// batch is a run of lines on its way from the reader over some worker to the judge.
type batch struct {
	line int64 // number of the first
	text []byte
	ends []int
	out  []read
	done chan struct{}
	err  error // the reader's: nothing follows
}

func (b *batch) work() {
	b.out = make([]read, len(b.ends))
	begin := 0
	for i, end := range b.ends {
		line := b.text[begin:end:end]
		begin = end
		e, err := readEntry(line)
		b.out[i] = read{entry: e, leaf: tlog.RecordHash(line), bad: err}
	}
	b.text = nil
	close(b.done)
}

// records reads n records and gives them to judge in their order. Reading, decoding and judging run beside each other, on
// all processors; what waits between them is bounded.
func (l *lines) records(n int64, judge func(line int64, e *read) error) error {
	workers := runtime.GOMAXPROCS(0)
	todo, inOrder := make(chan *batch, workers), make(chan *batch, 4*workers)
	parts, ctx := errgroup.WithContext(context.Background())
	parts.Go(func() error {
		defer close(todo)
		defer close(inOrder)
		for n > 0 {
			b := &batch{line: l.line + 1, done: make(chan struct{})}
			for n > 0 && len(b.ends) < batchLines && len(b.text) < batchBytes && b.err == nil {
				text, err := l.into(b.text)
				if b.err = err; err == nil {
					b.text, b.ends = text, append(b.ends, len(text))
					n--
				}
			}
			for _, to := range []chan *batch{inOrder, todo} {
				select {
				case to <- b:
				case <-ctx.Done():
					return nil
				}
			}
			if b.err != nil {
				return nil // told in its order, after what was found before it
			}
		}
		return nil
	})
	for range workers {
		parts.Go(func() error {
			for b := range todo {
				b.work()
			}
			return nil
		})
	}
	parts.Go(func() error {
		for b := range inOrder {
			select {
			case <-b.done:
			case <-ctx.Done():
				return nil
			}
			for i := range b.out {
				if err := judge(b.line+int64(i), &b.out[i]); err != nil {
					return err
				}
			}
			if b.err != nil {
				return b.err
			}
		}
		return nil
	})
	return parts.Wait()
}
