package alert

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// delays before each try (Standard Webhooks 1.0.0, "Retry schedule"); up to a fifth is added by chance, so that
// receivers that were down together are not called together.
var delays = []time.Duration{0, 5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

// message is what a receiver reads. It names a customer and a subscription, and nobody.
type message struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      reading   `json:"data"`
}

type reading struct {
	Zone         string `json:"zone"`
	Customer     string `json:"customer"`
	Subscription string `json:"subscription"`
	Plan         string `json:"plan"`
	PeriodStart  string `json:"period_start,omitempty"`
	PeriodEnd    string `json:"period_end,omitempty"`
	Threshold    int    `json:"threshold_percent"`
	Limit        int64  `json:"limit"`
	Used         int64  `json:"used"`
}

// body is the same for every delivery of an alert.
func body(zone string, a Alert) []byte {
	r := reading{Zone: zone, Customer: a.Customer, Subscription: a.Subscription, Plan: a.Plan, Threshold: a.Threshold, Limit: a.Limit, Used: a.Used}
	if a.Period != usage.PeriodRolling && a.Period != usage.PeriodPrepaid {
		r.PeriodStart = time.Unix(a.Period, 0).UTC().Format(time.RFC3339)
	}
	if a.PeriodEnd != 0 {
		r.PeriodEnd = time.Unix(a.PeriodEnd, 0).UTC().Format(time.RFC3339)
	}
	b, err := json.Marshal(message{"quota.threshold", a.RaisedAt, r})
	if err != nil {
		panic(err) // texts, numbers and a time cannot fail
	}
	return b
}

// sender makes one request; *http.Client is one.
type sender interface {
	Do(*http.Request) (*http.Response, error)
}

// newClient never follows a redirect, knows no proxy and keeps no connection: each delivery is dialled, and so judged.
func newClient(g guard, roots *x509.CertPool, timeout time.Duration) *http.Client {
	transport := func(plain bool) *http.Transport {
		dialer := &net.Dialer{Timeout: timeout / 2, Control: g.control(plain)}
		return &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true, DisableCompression: true}
	}
	return &http.Client{Timeout: timeout, Transport: byScheme{plain: transport(true), secure: transport(false)},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// byScheme dials plain http under the stricter rule.
type byScheme struct{ plain, secure http.RoundTripper }

func (b byScheme) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		return b.secure.RoundTrip(r)
	}
	return b.plain.RoundTrip(r)
}

// Run raises and delivers whenever this node leads the zone store, until ctx ends.
func (s *Service) Run(ctx context.Context) error { return s.cfg.Store.RunLeader(ctx, s.lead) }

func (s *Service) lead(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait() // before the next leader's work begins here
	busy := &running{hooks: map[string]bool{}}
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	var tidied, warned, next time.Time // next: when quotas may be read again
	warn := func(event string, err error) {
		if ctx.Err() == nil && time.Since(warned) > time.Minute { // a ledger without a quorum fails every look
			warned = time.Now()
			s.log.Warn(event, "error", err)
		}
	}
	for {
		if tidy := time.Since(tidied) > tidyEvery; !time.Now().Before(next) {
			reading, err := s.raise(ctx, tidy)
			next = time.Now().Add(restAfter * reading)
			if err == nil && tidy {
				tidied = time.Now()
			} else if err != nil {
				warn("raise alerts", err)
			}
		}
		if err := s.dispatch(ctx, &wg, busy); err != nil {
			warn("deliver alerts", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.news:
		}
	}
}

// running names the webhooks that are being told something: one at a time each, so that a slow receiver holds up
// nobody else and is not flooded when it comes back.
type running struct {
	mu    sync.Mutex // covers hooks
	hooks map[string]bool
}

func (r *running) take(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hooks[id] {
		return false
	}
	r.hooks[id] = true
	return true
}

func (r *running) leave(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.hooks, id)
}

// isPending is in the JSON of every pending alert, and in no other: inside a text its quotes would be escaped.
var isPending = []byte(`"status":"` + Pending + `"`)

// dispatch gives what is due to its webhooks.
func (s *Service) dispatch(ctx context.Context, wg *sync.WaitGroup, busy *running) error {
	local, at := s.cfg.Store.Local(), now()
	due := map[string][]owed{}
	for kv := range local.List(model.PrefixAlert) {
		if !bytes.Contains(kv.Value, isPending) { // most have been delivered long ago
			continue
		}
		a, err := model.Decode[Alert](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if a.Status == Pending && !at.Before(a.NextAt) {
			due[a.WebhookID] = append(due[a.WebhookID], owed{kv, a})
		}
	}
	if len(due) == 0 {
		return nil
	}
	hooks, err := webhooks(local)
	if err != nil {
		return err
	}
	for _, w := range hooks {
		list := due[w.ID]
		slices.SortFunc(list, func(a, b owed) int {
			return cmp.Or(a.alert.RaisedAt.Compare(b.alert.RaisedAt), cmp.Compare(a.alert.Threshold, b.alert.Threshold))
		})
		if len(list) > 0 && busy.take(w.ID) {
			wg.Go(func() {
				defer busy.leave(w.ID)
				s.tell(ctx, w, list)
			})
		}
	}
	return nil
}

// owed is an alert that is due, as it rests.
type owed struct {
	kv    group.KV
	alert Alert
}

func (s *Service) tell(ctx context.Context, w Webhook, list []owed) {
	for _, o := range list {
		if ctx.Err() != nil {
			return
		}
		// The list may be older than the last delivery to this webhook, whose outcome was applied here before the
		// webhook was free: what has changed since is told already, or not due.
		if kv, ok := s.cfg.Store.Local().Get(o.kv.Key); !ok || kv.ModIndex != o.kv.ModIndex {
			continue
		}
		if err := s.deliver(ctx, w, o.kv, o.alert); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("deliver an alert", "webhook", w.Name, "error", err)
			}
			return // the next look goes on from what is committed
		}
	}
	select {
	case s.news <- struct{}{}: // more may have come due meanwhile
	default:
	}
}

// deliver makes one try and writes down what became of it. A node that dies in between leaves the alert as it was:
// the next leader tells it again, under the same id.
func (s *Service) deliver(ctx context.Context, w Webhook, kv group.KV, a Alert) error {
	wait, failure := s.try(ctx, w, a)
	if ctx.Err() != nil {
		return ctx.Err() // cut off by the end of the leadership: nothing is known of the try
	}
	a.Attempts++
	if failure != nil {
		s.stats.Refused.Add(1)
	}
	var gone *goneError
	switch {
	case failure == nil:
		a.Status, a.DeliveredAt, a.NextAt, a.LastError = Delivered, now(), time.Time{}, ""
		s.stats.Delivered.Add(1)
	case a.Attempts >= len(delays) || errors.As(failure, &gone):
		a.Status, a.NextAt, a.LastError = Failed, time.Time{}, failure.Error()
	default:
		delay := delays[a.Attempts]
		delay += rand.N(delay/5 + 1)
		a.NextAt, a.LastError = now().Add(max(delay, wait)), failure.Error()
	}
	res, err := s.commit(ctx, group.Txn{Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: kv.Key, Value: model.Encode(a)}}})
	if err == nil && !res.Succeeded {
		s.log.Info("an alert was removed while it was delivered", "webhook", w.Name)
	}
	return err
}

// goneError is a receiver's word that it wants no more.
type goneError struct{ error }

// try answers how long the receiver asks to be left alone, and why the try failed.
func (s *Service) try(ctx context.Context, w Webhook, a Alert) (wait time.Duration, err error) {
	at := now()
	secrets, err := s.secrets(w, at)
	if err != nil {
		return 0, err
	}
	content := body(s.cfg.Zone, a)
	signature, err := sign(a.ID, at, content, secrets)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(content))
	if err != nil {
		return 0, errors.New("the URL cannot be read")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "bailiwick-webhooks/1")
	req.Header.Set("webhook-id", a.ID)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	req.Header.Set("webhook-signature", signature)
	resp, err := s.send.Do(req)
	if err != nil {
		return 0, shorten(err)
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, maxBody) // the answer's text is of no use here, and may be without end
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return 0, nil
	case resp.StatusCode == http.StatusGone:
		return 0, &goneError{errors.New("the receiver answers 410: it wants no more")}
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return 0, fmt.Errorf("the receiver answers %d: redirects are not followed", resp.StatusCode)
	}
	return retryAfter(resp.Header.Get("Retry-After")), fmt.Errorf("the receiver answers %d", resp.StatusCode)
}

// retryAfter reads seconds, up to a day; the other form of the header is rare and ignored.
func retryAfter(text string) time.Duration {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, 24*time.Hour)
}

// shorten keeps what an operator needs and the URL, which may hold a token, out of it.
func shorten(err error) error {
	if f, ok := fault.As(err); ok {
		return errors.New(f.Error())
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if d, ok := errors.AsType[*net.DNSError](err); ok { // whose text names the resolver of this network
		return fmt.Errorf("host %s is not found by name", d.Name)
	}
	text := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, err.Error())
	const most = 256
	runes := []rune(text)
	return errors.New(string(slices.Clip(runes[:min(len(runes), most)])))
}
