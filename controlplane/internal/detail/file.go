package detail

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"bailiwick/shared/durable"
	"bailiwick/shared/usage"
)

// record is a row as Parquet has it; the names are an interface for whoever reads the files with a tool of his
// own. Two columns are differences, since what they would otherwise hold is another column with noise: edge_us
// is the latency less the upstream's part, and id_skew what a UUIDv7's time is beyond end - latency. DESIGN.md
// says what each column costs.
type record struct {
	Customer     string `parquet:"customer,dict"`
	End          int64  `parquet:"end,timestamp(millisecond),delta"`
	Edge         string `parquet:"edge,dict"`
	Region       string `parquet:"region,dict"`
	Epoch        int64  `parquet:"epoch,delta"`
	Number       int64  `parquet:"number,delta"`
	Seq          int64  `parquet:"seq,delta"`
	Subscription string `parquet:"subscription,dict"`
	Plan         string `parquet:"plan,dict"`
	PlanRev      int64  `parquet:"plan_rev,dict"`
	Product      string `parquet:"product,dict"`
	API          string `parquet:"api,dict"`
	Route        string `parquet:"route,dict"`
	KeyID        string `parquet:"key_id,dict"`
	ServedRegion string `parquet:"served_region,dict"`
	Outcome      int32  `parquet:"outcome,dict"`
	Status       int32  `parquet:"status,dict"`
	Attempts     int32  `parquet:"attempts,dict"`
	Flags        int32  `parquet:"flags,dict"`
	Period       int64  `parquet:"period,dict"`
	Requests     int64  `parquet:"requests,dict"`
	Units        int64  `parquet:"units,dict"`
	BytesIn      int64  `parquet:"bytes_in,split"`
	BytesOut     int64  `parquet:"bytes_out,split"`
	LatencyUS    int64  `parquet:"latency_us,dict"`
	EdgeUS       int64  `parquet:"edge_us,dict"`
	Actor        int64  `parquet:"actor,dict"`
	Address      int64  `parquet:"address,dict"`
	IDSkew       int64  `parquet:"id_skew,delta"`
	IDHigh       int64  `parquet:"id_high,delta"` // bytes 6 and 7 of the request's id
	IDLow        int64  `parquet:"id_low,split"`  // bytes 8 to 15
}

// compare orders by customer, cell, route, outcome, edge and piece: in the order of time but for rows of one cell,
// of which those of one route lie together, since sizes and latencies go by it.
func (r *record) compare(o *record) int {
	return cmp.Or(strings.Compare(r.Customer, o.Customer), cmp.Compare(usage.CellStart(r.End), usage.CellStart(o.End)), strings.Compare(r.API, o.API),
		strings.Compare(r.Route, o.Route), cmp.Compare(r.Outcome, o.Outcome), cmp.Compare(r.Status, o.Status), strings.Compare(r.Edge, o.Edge),
		cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Number, o.Number))
}

func recordOf(p *Piece, r *usage.Row) record {
	id := r.RequestID[:]
	return record{Customer: r.Customer, End: r.EndUnixMS, Edge: p.Edge, Region: p.Region, Epoch: int64(p.Epoch), Number: int64(p.Number), Seq: int64(p.Seq),
		Subscription: r.Subscription, Plan: r.Plan, PlanRev: int64(r.PlanRev), Product: r.Product, API: r.API, Route: r.Route, KeyID: r.KeyID,
		ServedRegion: r.ServedRegion, Outcome: int32(r.Outcome), Status: int32(r.Status), Attempts: int32(r.Attempts), Flags: int32(r.Flags),
		Period: r.Period, Requests: r.Requests, Units: r.Units, BytesIn: r.BytesIn, BytesOut: r.BytesOut, LatencyUS: r.LatencyUS, EdgeUS: r.LatencyUS - r.UpstreamUS,
		Actor: int64(r.Actor), Address: int64(r.Address), IDSkew: int64(binary.BigEndian.Uint64(id)>>16) - began(r.EndUnixMS, r.LatencyUS),
		IDHigh: int64(binary.BigEndian.Uint16(id[6:])), IDLow: int64(binary.BigEndian.Uint64(id[8:]))}
}

func began(endMS, latencyUS int64) int64 { return endMS - latencyUS/1000 }

// Row is a request as it was found.
type Row struct {
	usage.Row
	Edge, Region       string
	Epoch, Number, Seq uint64
}

func (r *record) row() Row {
	out := Row{Edge: r.Edge, Region: r.Region, Epoch: uint64(r.Epoch), Number: uint64(r.Number), Seq: uint64(r.Seq), Row: usage.Row{
		EndUnixMS: r.End, Customer: r.Customer, Subscription: r.Subscription, Plan: r.Plan, PlanRev: uint64(r.PlanRev), Product: r.Product, API: r.API,
		Route: r.Route, KeyID: r.KeyID, ServedRegion: r.ServedRegion, Outcome: usage.Outcome(r.Outcome), Status: uint16(r.Status), Attempts: uint8(r.Attempts),
		Flags: usage.Flags(r.Flags), Period: r.Period, Requests: r.Requests, Units: r.Units, BytesIn: r.BytesIn, BytesOut: r.BytesOut,
		LatencyUS: r.LatencyUS, UpstreamUS: r.LatencyUS - r.EdgeUS, Actor: uint64(r.Actor), Address: uint64(r.Address)}}
	binary.BigEndian.PutUint64(out.RequestID[:], uint64(r.IDSkew+began(r.End, r.LatencyUS))<<16|uint64(uint16(r.IDHigh)))
	binary.BigEndian.PutUint64(out.RequestID[8:], uint64(r.IDLow))
	return out
}

const (
	groupRows = 128 << 10 // rows sorted together: one row group, some 50 MB in memory
	pageBytes = 128 << 10
)

// info is a file as the catalog has it.
type info struct {
	Name   string `json:"name"`
	Number uint64 `json:"number"` // stays when the file is rewritten
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
	Rows   int64  `json:"rows"`
	MinMS  int64  `json:"min_ms"` // of its rows' ends
	MaxMS  int64  `json:"max_ms"`
}

// fileWriter makes one Parquet file: under a temporary name until it is whole, then under one that says its
// format, day, number and checksum. It becomes part of the store when the catalog names it.
type fileWriter struct {
	s    *Store
	tmp  string
	f    durable.File
	sum  hash.Hash
	w    *parquet.GenericWriter[record]
	info info
}

func (s *Store) create(number uint64) (*fileWriter, error) {
	w := &fileWriter{s: s, tmp: s.path(fmt.Sprintf("file-%016d.tmp", number)), sum: sha256.New(), info: info{Number: number, MinMS: math.MaxInt64, MaxMS: math.MinInt64}}
	f, err := s.fs.Create(w.tmp)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", w.tmp, err)
	}
	w.f = f
	w.w = parquet.NewGenericWriter[record](io.MultiWriter(f, w.sum), parquet.Compression(&zstd.Codec{Level: zstd.SpeedDefault}), parquet.PageBufferSize(pageBytes),
		parquet.CreatedBy(s.cfg.Program, "1", ""), parquet.ColumnIndexSizeLimit(func([]string) int { return usage.MaxString }),
		parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("customer"))))
	return w, nil
}

// group writes records as one row group, in order.
func (w *fileWriter) group(records []record) error {
	if len(records) == 0 {
		return nil
	}
	order := make([]int32, len(records)) // records are large: only their places move
	for i := range records {
		order[i] = int32(i)
		w.info.MinMS, w.info.MaxMS = min(w.info.MinMS, records[i].End), max(w.info.MaxMS, records[i].End)
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Or(records[a].compare(&records[b]), cmp.Compare(a, b)) })
	w.info.Rows += int64(len(records))
	batch := make([]record, 0, 1024) // the library buffers what it is given at once
	for i, at := range order {
		if batch = append(batch, records[at]); len(batch) == cap(batch) || i == len(order)-1 {
			if _, err := w.w.Write(batch); err != nil {
				return fmt.Errorf("write %s: %w", w.tmp, err)
			}
			batch = batch[:0]
		}
	}
	if err := w.w.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", w.tmp, err)
	}
	return nil
}

// finish makes the file durable under its name. One without rows is removed, and its info has no name.
func (w *fileWriter) finish() (_ info, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("finish %s: %w", w.tmp, err)
		}
	}()
	if w.info.Rows == 0 {
		return info{}, w.discard()
	}
	if err := w.w.Close(); err != nil {
		return info{}, errors.Join(err, w.f.Close())
	}
	if err := w.f.Sync(); err != nil {
		return info{}, errors.Join(err, w.f.Close())
	}
	st, err := w.f.Stat()
	if err = errors.Join(err, w.f.Close()); err != nil {
		return info{}, err
	}
	w.info.Bytes, w.info.SHA256 = st.Size(), hex.EncodeToString(w.sum.Sum(nil))
	w.info.Name = fmt.Sprintf("detail-v1-%s-%016d-%s.parquet", time.UnixMilli(w.info.MinMS).UTC().Format("20060102"), w.info.Number, w.info.SHA256[:16])
	if err := w.s.fs.Rename(w.tmp, w.s.path(w.info.Name)); err != nil {
		return info{}, err
	}
	return w.info, w.s.fs.SyncDir(w.s.cfg.Dir)
}

func (w *fileWriter) discard() error {
	return errors.Join(w.f.Close(), w.s.fs.Remove(w.tmp))
}

// openFile opens a file of the catalog. The first time since the start its checksum is verified: pages carry
// their own, the footer does not.
func (s *Store) openFile(f info) (*parquet.File, durable.File, error) {
	h, err := s.fs.Open(s.path(f.Name))
	if err != nil {
		return nil, nil, err
	}
	pf, err := func() (*parquet.File, error) {
		if err := s.verify(f, h); err != nil {
			return nil, err
		}
		return parquet.OpenFile(h, f.Bytes)
	}()
	if err != nil {
		h.Close()
		return nil, nil, fmt.Errorf("open %s: %w", f.Name, err)
	}
	return pf, h, nil
}

func (s *Store) verify(f info, h durable.File) error {
	s.mu.Lock()
	err, known := s.sound[f.Name]
	s.mu.Unlock()
	if known {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(h, 0, math.MaxInt64)); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		err = &durable.CorruptError{Path: f.Name, What: "its SHA-256 is " + got + ", the catalog says " + f.SHA256}
		s.log.Error("a file of detail is damaged; its rows are not found any more", "file", f.Name, "rows", f.Rows, "error", err)
	}
	s.mu.Lock()
	s.sound[f.Name] = err
	s.mu.Unlock()
	return err
}

// scan visits a customer's records of one file whose ends lie in [lo, hi), reading only the pages that may
// hold him. customer "" visits all. The record is valid during the call only.
func (s *Store) scan(ctx context.Context, f info, customer string, lo, hi int64, each func(*record) error) error {
	pf, h, err := s.openFile(f)
	if err != nil {
		return err
	}
	defer h.Close()
	buf := make([]record, 1024)
	for _, g := range pf.RowGroups() {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to, err := pagesOf(g, customer)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name, err)
		}
		if from >= to {
			continue
		}
		if err := readGroup(g, from, to, buf, func(r *record) error {
			if customer != "" && r.Customer != customer || r.End < lo || r.End >= hi {
				return nil
			}
			return each(r)
		}); err != nil {
			return fmt.Errorf("read %s: %w", f.Name, err)
		}
	}
	return nil
}

func readGroup(g parquet.RowGroup, from, to int64, buf []record, each func(*record) error) error {
	r := parquet.NewGenericRowGroupReader[record](g)
	defer r.Close()
	if from > 0 {
		if err := r.SeekToRow(from); err != nil {
			return err
		}
	}
	for left := to - from; left > 0; {
		n, err := r.Read(buf[:min(left, int64(len(buf)))])
		for i := range buf[:n] {
			if err := each(&buf[i]); err != nil {
				return err
			}
		}
		left -= int64(n)
		if left == 0 {
			break
		}
		if err != nil {
			return err // io.EOF too: there are rows to come
		}
		if n == 0 {
			return io.ErrNoProgress
		}
	}
	return nil
}

// pagesOf is the range of rows of a group in whose pages a customer may be, by the bounds of its first column.
func pagesOf(g parquet.RowGroup, customer string) (from, to int64, err error) {
	if customer == "" {
		return 0, g.NumRows(), nil
	}
	column := g.ColumnChunks()[columnOf("customer")]
	bounds, err := column.ColumnIndex()
	if err != nil {
		return 0, 0, err
	}
	offsets, err := column.OffsetIndex()
	if err != nil {
		return 0, 0, err
	}
	from, to = -1, g.NumRows()
	for i := range bounds.NumPages() {
		low, high := string(bounds.MinValue(i).ByteArray()), string(bounds.MaxValue(i).ByteArray())
		if customer < low {
			to = offsets.FirstRowIndex(i)
			break
		}
		if from < 0 && customer <= high {
			from = offsets.FirstRowIndex(i)
		}
	}
	if from < 0 {
		return 0, 0, nil
	}
	return from, to, nil
}

var columnOf = func() func(string) int {
	schema := parquet.SchemaOf(record{})
	return func(name string) int {
		leaf, _ := schema.Lookup(name) // a constant of this file
		return leaf.ColumnIndex
	}
}()

func missing(err error) bool { return errors.Is(err, os.ErrNotExist) }
