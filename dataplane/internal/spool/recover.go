package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// finishEpoch makes the rows that the process before left behind its last seal
// into the last blocks of its epoch.
func (s *Spool) finishEpoch() error {
	found, err := s.segmentsOf(s.st.epoch)
	if err != nil || s.st.epoch == 0 || s.st.final {
		return err
	}
	from := max(s.st.covered, pos(1<<32|segmentHeader))
	s.rows = s.st.rows
	cp, err := s.readCheckpoint()
	if err != nil {
		return err
	}
	if cp != nil && cp.epoch == s.st.epoch && cp.upTo > from {
		from, s.rows = cp.upTo, cp.rows
		if err := s.open.merge(cp.open); err != nil {
			return err
		}
	}
	rows, at, err := s.recover(found, from)
	if err != nil {
		return err
	}
	s.count.recovered.Store(int64(rows))
	if s.cfg.Detail != nil { // what it has is passed over; what it has not is lost, and said so
		if s.detail.batch.Len() > 0 {
			s.giveDetail(s.detail.through)
		}
		s.giveDetail(s.rows)
	}
	if len(s.open.cells) == 0 {
		return nil
	}
	a := s.newAttempt(from, max(at, s.st.at))
	a.final = true
	if err := s.writeAttempt(a); err != nil {
		return err
	}
	s.open = newSums()
	s.cfg.Logger.Info("usage of the process before is sealed", "epoch", s.st.epoch, "seq", s.st.seq, "rows", rows)
	return nil
}

func (s *Spool) segmentsOf(epoch uint64) ([]uint64, error) {
	dir, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var nos []uint64
	for _, d := range dir {
		e, no, ok := parseSegmentName(d.Name())
		switch {
		case ok && e > epoch:
			return nil, &durable.CorruptError{Path: filepath.Join(s.cfg.Dir, d.Name()), What: fmt.Sprintf("it is of epoch %d, the journal knows up to %d", e, epoch)}
		case ok && e == epoch:
			nos = append(nos, no)
		}
	}
	slices.Sort(nos)
	return nos, nil
}

// stop is where reading the row log ended without an end's word.
type stop struct {
	path    string
	at      pos
	boot    [16]byte
	torn    int64 // bytes written from there on
	behind  int   // records that check out behind it
	through pos   // the highest place that one of them says was on disk
}

// recover folds the rows from from on into s.open. What it does not take:
//
//   - nothing valid lies behind the bad place: the write that the crash cut off.
//   - something does, in the same boot of the machine, or a record says that the
//     bad place was on disk: damage, for a kill leaves no holes. Refused.
//   - something does, but the machine went down: pages of the last moments
//     reached the disk out of order. Cut at the hole, which is inside the group
//     commit's window, and logged.
func (s *Spool) recover(nos []uint64, from pos) (rows int, at int64, err error) {
	corrupt := func(g string, off int, what string) (int, int64, error) {
		return 0, 0, &durable.CorruptError{Path: g, Offset: int64(off), What: what}
	}
	i, has := slices.BinarySearch(nos, from.seg())
	if !has {
		if len(nos) == 0 && s.st.covered == 0 && from.seg() == 1 {
			return 0, 0, nil // it ended before its first segment was made
		}
		return corrupt(filepath.Join(s.cfg.Dir, segmentName(s.st.epoch, from.seg())), 0, "the segment with the first row not in a block is missing")
	}
	var halt *stop
	boot := bootID()
	for k, no := range nos[i:] {
		path := filepath.Join(s.cfg.Dir, segmentName(s.st.epoch, no))
		if no != from.seg()+uint64(k) {
			return corrupt(path, 0, "the segment before it is missing")
		}
		g, err := readSegment(path, s.st.epoch, no)
		if err != nil {
			return 0, 0, err
		}
		if s.cfg.Detail != nil { // see keepDetail
			if err := syncPath(path); err != nil {
				return 0, 0, fmt.Errorf("sync usage rows: %w", err)
			}
		}
		off, what := segmentHeader, placeRecord
		if k == 0 {
			off = from.off()
		}
		for halt == nil && what == placeRecord {
			var payload []byte
			place := off
			if payload, off, what = g.read(off); what == placeRecord && isRow(payload) {
				if err := s.foldRow(g, place, payload); err != nil {
					return corrupt(path, place, err.Error())
				}
				if s.detail.batch.Len() >= usage.MaxDetailRows {
					s.giveDetail(s.detail.through)
				}
				at = max(at, int64(binary.LittleEndian.Uint64(payload[rowEnd:])))
				rows++
			}
		}
		if halt == nil && what != placeEnd {
			halt = &stop{path: path, at: g.at(off), boot: g.boot}
		}
		if halt != nil {
			halt.look(g, off)
		}
	}
	switch {
	case halt == nil:
	case halt.behind > 0 && (halt.through > halt.at || halt.boot == boot && boot != [16]byte{}):
		return corrupt(halt.path, halt.at.off(), fmt.Sprintf("a row does not check out, and %d records behind it do", halt.behind))
	case halt.torn > 0:
		s.count.torn.Store(halt.torn)
		s.cfg.Logger.Warn("usage rows had a torn tail", "file", filepath.Base(halt.path), "offset", halt.at.off(), "bytes", halt.torn, "records_behind_it", halt.behind)
	}
	return rows, at, nil
}

// look searches what lies behind the halt for records. Most of it is zeros, some MiB, which are none.
func (h *stop) look(g *segment, off int) {
	set := written(g.data[off:])
	h.torn += int64(set)
	for end := off + set; off < end && off+wordSize <= len(g.data); {
		payload, next, what := g.read(off)
		if what != placeRecord {
			off += wordSize
			continue
		}
		h.behind++
		if payload[0] == kindSync {
			h.through = max(h.through, pos(binary.LittleEndian.Uint64(payload[8:])))
		}
		off = next
	}
}

// written is how long b is without the zeros at its end.
func written(b []byte) int {
	var zeros [4096]byte
	for len(b) >= len(zeros) && bytes.Equal(b[len(b)-len(zeros):], zeros[:]) {
		b = b[:len(b)-len(zeros)]
	}
	return len(bytes.TrimRight(b, "\x00"))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return durable.SyncData(f)
}

// removeOld removes what belongs to epochs before the current one, and leftovers.
func (s *Spool) removeOld() error {
	dir, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range dir {
		e, _, ok := parseSegmentName(d.Name())
		if ok && e < s.st.epoch || strings.HasPrefix(d.Name(), "rows-") && strings.HasSuffix(d.Name(), ".tmp") {
			if err := removeFile(filepath.Join(s.cfg.Dir, d.Name())); err != nil {
				return err
			}
		}
	}
	return s.removeCheckpoint()
}

// A checkpoint is the open cells and the place up to which rows are in them,
// for when nothing is sealed: epoch, upTo, rows, n × payload.
type checkpoint struct {
	epoch uint64
	upTo  pos
	rows  uint64 // of the epoch, below upTo; version 1 does not say
	open  usage.Payload
}

const checkpointLimit = 1 << 30

func (c *Config) checkpointPath() string { return filepath.Join(c.Dir, "open") }

func (c *Config) checkpointHeader() durable.Header {
	return durable.Header{Magic: "bwopen", Version: 2, Program: c.Program}
}

func (s *Spool) readCheckpoint() (*checkpoint, error) {
	b, head, err := durable.ReadSealed(s.cfg.FS, s.cfg.checkpointPath(), s.cfg.checkpointHeader(), checkpointLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := fields{b: b}
	cp := &checkpoint{epoch: f.num(), upTo: pos(f.num()), open: usage.Payload{Cells: map[usage.Cell]usage.Sums{}, Latency: map[usage.LatencyKey]*usage.Sketch{}}}
	if head.Version > 1 {
		cp.rows = f.num()
	}
	for range f.num() {
		if f.bad {
			break
		}
		part, err := usage.Decode(f.take(f.num()))
		if err != nil {
			return nil, fmt.Errorf("read usage checkpoint: %w", err)
		}
		maps.Copy(cp.open.Cells, part.Cells)
		maps.Copy(cp.open.Latency, part.Latency)
	}
	if f.bad || len(f.b) > 0 {
		return nil, &durable.CorruptError{Path: s.cfg.checkpointPath(), What: "a checkpoint does not decode"}
	}
	return cp, nil
}

func (s *Spool) writeCheckpoint() error {
	var parts []byte
	n := uint64(0)
	for p := range usage.Payloads(s.open.payload()) {
		parts = appendBytes(parts, p)
		n++
	}
	b := binary.AppendUvarint(nil, s.st.epoch)
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(s.folded)), s.rows)
	b = append(binary.AppendUvarint(b, n), parts...)
	return durable.WriteSealed(s.cfg.FS, s.cfg.checkpointPath(), s.cfg.checkpointHeader(), b)
}

func (s *Spool) removeCheckpoint() error {
	if err := s.cfg.FS.Remove(s.cfg.checkpointPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
