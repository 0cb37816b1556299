// Package kafka owns the way of counted usage into a Kafka topic: one record for
// each row of the ledger. It alone imports franz-go.
//
// It is at-least-once: the topic keeps no position of ours, so after a broken
// connection or a change of leader a block may be there twice. Headers name the
// block, (edge, epoch, seq), and the row in it: whoever reads drops a row whose
// (edge, epoch, seq, row) he has. All rows of an edge have one key, so they are
// in one partition and in the order of their blocks. Nothing of it survives a
// crash here; Commit belongs to one goroutine.
package kafka

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// Config says where the topic is.
type Config struct {
	Brokers []string      // required: host:port each
	Topic   string        // required; it must exist
	Timeout time.Duration // for a batch to be acknowledged by all in-sync replicas; 0: 30 s
}

// Parse reads broker,broker/topic.
func Parse(text string) (Config, error) {
	brokers, topic, ok := strings.Cut(text, "/")
	c := Config{Brokers: strings.Split(brokers, ","), Topic: topic}
	if !ok {
		return c, fmt.Errorf("kafka sink %q: write it as host:port,host:port/topic", text)
	}
	return c, c.Validate()
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Topic == "" || len(c.Brokers) == 0 || slices.Contains(c.Brokers, "") || c.Timeout < 0 {
		return errors.New("kafka sink: brokers and a topic are required")
	}
	return nil
}

// Sink is a sink.Sink.
type Sink struct {
	cfg    Config
	client *kgo.Client
}

// New returns a Sink, which dials when it is first used.
func New(cfg Config) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	// A batch ends with the turn of its leader, whether or not it was written: it is offered again by the next.
	// Idempotent, and acknowledged by all in-sync replicas, are the library's defaults: within one connection to a
	// partition nothing is written twice or out of order.
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.DefaultProduceTopic(cfg.Topic), kgo.ClientID("bailiwick-control"),
		kgo.RecordDeliveryTimeout(cfg.Timeout), kgo.AllowIdempotentProduceCancellation(), kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.NoCompression()))
	if err != nil {
		return nil, fmt.Errorf("kafka sink: %w", err)
	}
	return &Sink{cfg, client}, nil
}

// Close ends the connections.
func (s *Sink) Close() { s.client.Close() }

// Name is part of sink.Sink.
func (s *Sink) Name() string { return "kafka:" + s.cfg.Topic }

// Position is part of sink.Sink: none is kept with the data.
func (s *Sink) Position(context.Context) (uint64, bool, error) { return 0, false, nil }

// Commit is part of sink.Sink.
func (s *Sink) Commit(ctx context.Context, blocks []ledger.OutBlock) error {
	var records []*kgo.Record
	for i := range blocks {
		list, err := Records(&blocks[i])
		if err != nil {
			return err
		}
		records = append(records, list...)
	}
	if err := s.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce %d rows to topic %s: %w", len(records), s.cfg.Topic, err)
	}
	return nil
}

// Row is the value of a record, as JSON. Numbers are exact integers.
type Row struct {
	Cell         string `json:"cell"` // RFC 3339, its start
	Customer     string `json:"customer"`
	Subscription string `json:"subscription"`
	Plan         string `json:"plan"`
	PlanRev      uint64 `json:"plan_rev"`
	Product      string `json:"product"`
	API          string `json:"api"`
	Route        string `json:"route"`
	Outcome      string `json:"outcome"`
	ServedRegion string `json:"served_region"`
	Requests     int64  `json:"requests"`
	Units        int64  `json:"units"`
	BytesIn      int64  `json:"bytes_in"`
	BytesOut     int64  `json:"bytes_out"`
}

// Records are the rows of a block in their order, which is the same each time.
func Records(b *ledger.OutBlock) ([]*kgo.Record, error) {
	cells, err := usage.DecodePayload(b.Payload)
	if err != nil {
		return nil, fmt.Errorf("read block %d of epoch %d of edge %s: %w", b.Seq, b.Epoch, b.Edge, err)
	}
	order := make([]usage.Cell, 0, len(cells))
	for c := range cells {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b usage.Cell) int { return a.Compare(&b) })
	header := func(key string, value string) kgo.RecordHeader {
		return kgo.RecordHeader{Key: key, Value: []byte(value)}
	}
	block := []kgo.RecordHeader{header("edge", b.Edge), header("region", b.Region), header("epoch", strconv.FormatUint(b.Epoch, 10)),
		header("seq", strconv.FormatUint(b.Seq, 10)), header("hash", hex.EncodeToString(b.Hash[:])), header("rows", strconv.Itoa(len(order)))}
	out := make([]*kgo.Record, 0, len(order))
	for i, c := range order {
		s := cells[c]
		value, err := json.Marshal(Row{time.Unix(c.Start, 0).UTC().Format(time.RFC3339), c.Customer, c.Subscription, c.Plan, c.PlanRev, c.Product, c.API, c.Route,
			c.Outcome.String(), c.ServedRegion, s.Requests, s.Units, s.BytesIn, s.BytesOut})
		if err != nil {
			return nil, err
		}
		out = append(out, &kgo.Record{Key: []byte(b.Edge), Value: value, Headers: append(slices.Clone(block), header("row", strconv.Itoa(i)))})
	}
	return out, nil
}
