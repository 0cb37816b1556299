// Package alert owns webhooks on quotas: who is told, which thresholds have been reached, and what became of each
// message. A threshold is raised once per (webhook, customer, subscription, period, threshold): a fact in the zone
// store, written by its leader before the first delivery. Deliveries are at least once and carry the fact's id, so
// they mean one thing exactly once.
//
// It never counts usage, judges a quota or dials an address inside the network it runs in. What it acknowledged and
// raised survives as the zone store does; a message that was on its way when the leader died goes out again under the
// same id. Everything may be called at once; Run is called once.
package alert

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/usage"
)

// Limits.
const (
	MaxWebhooks   = 64                  // of a zone
	MaxThresholds = 16                  // of a webhook
	MaxOverlap    = 7 * 24 * time.Hour  // of two secrets
	MaxListed     = 1000                // alerts in one answer, the newest
	Keep          = 35 * 24 * time.Hour // how long a fact stays after its threshold is no longer reached
	maxBody       = 4 << 10             // bytes of an answer that are read
	raisedAtOnce  = 32                  // facts of one customer in one transaction
	prunedAtOnce  = 1000                // old facts taken away in one transaction
	restAfter     = 9                   // times as long as reading quotas took, they are left alone: a tenth of a core at most
	tidyEvery     = time.Hour           // how often old facts are looked for
)

// DefaultThresholds in percent.
var DefaultThresholds = []int{50, 80, 100}

// Account is a subscription's quota in its present period.
type Account struct {
	Customer, Subscription, Plan string
	Period                       int64 // start, unix s; or usage.PeriodRolling, usage.PeriodPrepaid
	PeriodEnd                    int64 // unix s; 0: it does not end
	Limit, Used                  int64
}

// Config of a Service.
type Config struct {
	Zone     string                                   // required
	Store    group.Store                              // required: the zone's
	SealKey  []byte                                   // required: 32 bytes under which secrets rest
	Accounts func(context.Context) ([]Account, error) // nil: nothing is raised
	// Allow opens networks to webhooks that are closed to them, and to plain http; only ever for tests and sandboxes.
	Allow  []netip.Prefix
	Roots  *x509.CertPool // nil: the system's
	Logger *slog.Logger   // nil discards

	Every   time.Duration // between two looks at quotas and at what is due; 0: 2 s
	Timeout time.Duration // of one delivery; 0: 15 s
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Zone == "" || c.Store == nil || len(c.SealKey) != 32 {
		return errors.New("alert config: Zone, Store and a SealKey of 32 bytes are required")
	}
	return nil
}

// Service is one node's part.
type Service struct {
	cfg  Config
	log  *slog.Logger
	seal cipher.AEAD
	send sender
	news chan struct{} // holds one: something may be due

	stats Stats
}

// Stats counts what this node did since it started.
type Stats struct {
	Raised    atomic.Int64 // thresholds
	Delivered atomic.Int64 // messages that a receiver took
	Refused   atomic.Int64 // tries that failed
}

// Stats of this node.
func (s *Service) Stats() *Stats { return &s.stats }

// New returns a Service that raises and delivers while Run does and this node leads the zone store.
func New(cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Every == 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	block, err := aes.NewCipher(cfg.SealKey)
	if err != nil {
		return nil, fmt.Errorf("make the seal of webhook secrets: %w", err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make the seal of webhook secrets: %w", err)
	}
	return &Service{cfg: cfg, log: cfg.Logger, seal: seal, send: newClient(guard{cfg.Allow}, cfg.Roots, cfg.Timeout), news: make(chan struct{}, 1)}, nil
}

// Webhook is who is told. Its ID is drawn at its creation: another one under the same name is told anew.
type Webhook struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	URL        string    `json:"url"`
	Thresholds []int     `json:"thresholds"` // percent, ascending
	Customer   string    `json:"customer,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	Secrets    []secret  `json:"secrets"` // the newest first, at most two
}

// secret is a signing secret at rest.
type secret struct {
	Sealed []byte    `json:"sealed"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is replaced
}

// Statuses of an alert.
const (
	Pending   = "pending"
	Delivered = "delivered"
	Failed    = "failed"
)

// Alert is the fact that a threshold was reached, and what became of telling it. What it says does not change once
// it is raised: every delivery has the same body.
type Alert struct {
	ID           string    `json:"id"`
	WebhookID    string    `json:"webhook_id"`
	Webhook      string    `json:"webhook"`
	Customer     string    `json:"customer"`
	Subscription string    `json:"subscription"`
	Plan         string    `json:"plan"`
	Period       int64     `json:"period"`
	PeriodEnd    int64     `json:"period_end,omitempty"`
	Threshold    int       `json:"threshold"`
	Limit        int64     `json:"limit"`
	Used         int64     `json:"used"`
	RaisedAt     time.Time `json:"raised_at"`

	Status      string    `json:"status"`
	Attempts    int       `json:"attempts,omitempty"`
	NextAt      time.Time `json:"next_at,omitzero"`
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
	LastError   string    `json:"last_error,omitempty"`
}

// instance tells one period from the next where periods have no start: a prepaid balance begins anew with each
// top-up, and what slides is told once a day.
func (a Account) instance(now time.Time) string {
	switch a.Period {
	case usage.PeriodPrepaid:
		return "prepaid-" + strconv.FormatInt(a.Limit, 10)
	case usage.PeriodRolling:
		return "rolling-" + now.UTC().Format(time.DateOnly)
	}
	return strconv.FormatInt(a.Period, 10)
}

// factKey begins with the customer, so that whoever erases one finds all of theirs.
func factKey(w Webhook, a Account, instance string, threshold int) string {
	return fmt.Sprintf("%s%s/%s/%s/%s/%d", model.PrefixAlert, a.Customer, a.Subscription, instance, w.ID, threshold)
}

// messageID is the webhook-id of all deliveries of a fact: whoever raises it, it is the same.
func messageID(zone, key string) string {
	sum := sha256.Sum256([]byte("bailiwick alert 1\x00" + zone + "\x00" + key))
	return "alert_" + hex.EncodeToString(sum[:16])
}

// now is cut to what is stored.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
