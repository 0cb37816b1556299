package alert

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// Reasons of errors, besides those of an address.
const (
	ReasonExists    = "WEBHOOK_EXISTS"    // Conflict
	ReasonNotFound  = "WEBHOOK_NOT_FOUND" // NotFound
	ReasonTooMany   = "WEBHOOKS_TOO_MANY" // Conflict
	ReasonThreshold = "THRESHOLD_INVALID" // Invalid
	ReasonOverlap   = "OVERLAP_INVALID"   // Invalid
	ReasonChanged   = "CONCURRENT_CHANGE" // Conflict
)

// fenceKey is compared and rewritten by every creation, so that two at once cannot pass the limit together.
const fenceKey = "meta/webhooks"

// commit makes a transaction and waits until this node has applied it.
func (s *Service) commit(ctx context.Context, t group.Txn) (group.Result, error) {
	res, err := s.cfg.Store.Txn(ctx, t)
	if err == nil && res.Succeeded {
		err = s.cfg.Store.WaitFor(ctx, res.Revision.Index)
	}
	return res, err
}

func webhooks(snap group.Snapshot) ([]Webhook, error) {
	var out []Webhook
	for kv := range snap.List(model.PrefixWebhook) {
		w, err := model.Decode[Webhook](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

func thresholds(list []int) ([]int, error) {
	if len(list) == 0 {
		return DefaultThresholds, nil
	}
	out := slices.Compact(slices.Sorted(slices.Values(list)))
	if len(out) > MaxThresholds || out[0] < 1 || out[len(out)-1] > 1000 {
		return nil, fault.New(fault.Invalid, ReasonThreshold, "thresholds are at most %d percentages of 1 to 1000", MaxThresholds).At("thresholds")
	}
	return out, nil
}

// Create answers the signing secret, once. w needs Name and URL; requestID makes a retry safe.
func (s *Service) Create(ctx context.Context, w Webhook, requestID string) (Webhook, string, error) {
	none := Webhook{}
	if !model.ValidName(w.Name) {
		return none, "", fault.New(fault.Invalid, "NAME_INVALID", "webhook name %q is not a lower-case letter followed by at most 62 of a-z, 0-9, '.' and '-'", w.Name).At("name")
	}
	if err := (guard{s.cfg.Allow}).checkURL(w.URL); err != nil {
		return none, "", err
	}
	var err error
	if w.Thresholds, err = thresholds(w.Thresholds); err != nil {
		return none, "", err
	}
	snap, err := s.cfg.Store.Sync(ctx)
	if err != nil {
		return none, "", err
	}
	all, err := webhooks(snap)
	if err != nil {
		return none, "", err
	}
	exists := fault.New(fault.Conflict, ReasonExists, "webhook %s exists: delete it, or rotate its secret if nobody has that", w.Name)
	switch _, known := snap.Get(model.PrefixCustomer + w.Customer); {
	case slices.ContainsFunc(all, func(o Webhook) bool { return o.Name == w.Name }):
		return none, "", exists
	case len(all) >= MaxWebhooks:
		return none, "", fault.New(fault.Conflict, ReasonTooMany, "zone %s has %d webhooks, at most %d are kept: delete some", s.cfg.Zone, len(all), MaxWebhooks)
	case w.Customer != "" && !known:
		return none, "", fault.New(fault.NotFound, "CUSTOMER_NOT_FOUND", "customer %q does not exist in zone %s", w.Customer, s.cfg.Zone)
	}
	w.ID, w.CreatedAt = "wh_"+strings.ToLower(rand.Text()), now()
	text := newSecret()
	w.Secrets = []secret{{Sealed: s.close(w, text)}}
	fence, _ := snap.Get(fenceKey)
	t := group.Txn{RequestID: requestID,
		Compares: []group.Compare{{Key: fenceKey, ModIndex: fence.ModIndex}, {Key: model.PrefixWebhook + w.Name}},
		Ops:      []group.Op{{Key: model.PrefixWebhook + w.Name, Value: model.Encode(w)}, {Key: fenceKey, Value: []byte(w.ID)}}}
	if w.Customer != "" {
		t.Compares = append(t.Compares, group.Compare{Key: model.PrefixCustomer + w.Customer, Exists: true})
	}
	res, err := s.commit(ctx, t)
	if err != nil {
		return none, "", err
	}
	if !res.Succeeded {
		return none, "", fault.New(fault.Conflict, ReasonChanged, "others changed webhooks or customers meanwhile: try again")
	}
	if kv, ok := s.cfg.Store.Local().Get(model.PrefixWebhook + w.Name); !ok {
		return none, "", exists
	} else if stored, err := model.Decode[Webhook](kv.Key, kv.Value); err != nil || stored.ID != w.ID {
		return none, "", exists // an earlier call with this request id made it, and its secret is gone
	}
	return w, text, nil
}

// List is in order of names.
func (s *Service) List(ctx context.Context) ([]Webhook, error) {
	snap, err := s.cfg.Store.Sync(ctx)
	if err != nil {
		return nil, err
	}
	return webhooks(snap)
}

func (s *Service) find(ctx context.Context, name string) (Webhook, group.KV, error) {
	kv, ok, _, err := s.cfg.Store.Get(ctx, model.PrefixWebhook+name)
	if err != nil {
		return Webhook{}, kv, err
	}
	if !ok {
		return Webhook{}, kv, fault.New(fault.NotFound, ReasonNotFound, "webhook %q does not exist in zone %s", name, s.cfg.Zone)
	}
	w, err := model.Decode[Webhook](kv.Key, kv.Value)
	return w, kv, err
}

// Delete ends deliveries: what was raised stays listed for a while.
func (s *Service) Delete(ctx context.Context, name string) error {
	_, kv, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	_, err = s.commit(ctx, group.Txn{Ops: []group.Op{{Key: kv.Key, Delete: true}}})
	return err
}

// Rotate answers a new secret. The one before it signs as well for the time of overlap; an even older one ends now.
func (s *Service) Rotate(ctx context.Context, name string, overlap time.Duration) (string, error) {
	if overlap < 0 || overlap > MaxOverlap {
		return "", fault.New(fault.Invalid, ReasonOverlap, "an overlap of %v is not between 0 and %v", overlap, MaxOverlap).At("overlap")
	}
	w, kv, err := s.find(ctx, name)
	if err != nil {
		return "", err
	}
	text := newSecret()
	secrets := []secret{{Sealed: s.close(w, text)}}
	if overlap > 0 && len(w.Secrets) > 0 {
		secrets = append(secrets, secret{Sealed: w.Secrets[0].Sealed, Until: now().Add(overlap)})
	}
	w.Secrets = secrets
	res, err := s.commit(ctx, group.Txn{Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}}, Ops: []group.Op{{Key: kv.Key, Value: model.Encode(w)}}})
	if err != nil {
		return "", err
	}
	if !res.Succeeded {
		return "", fault.New(fault.Conflict, ReasonChanged, "webhook %s changed meanwhile: try again", name)
	}
	return text, nil
}

// Alerts lists what was raised, the newest first, of one customer or of all.
func (s *Service) Alerts(ctx context.Context, customer string) ([]Alert, error) {
	snap, err := s.cfg.Store.Sync(ctx)
	if err != nil {
		return nil, err
	}
	hooks, err := webhooks(snap)
	if err != nil {
		return nil, err
	}
	prefix := model.PrefixAlert
	if customer != "" {
		prefix += customer + "/"
	}
	var out []Alert
	for kv := range snap.List(prefix) {
		a, err := model.Decode[Alert](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if a.Status == Pending && !slices.ContainsFunc(hooks, func(w Webhook) bool { return w.ID == a.WebhookID }) {
			a.Status, a.LastError = Failed, "the webhook was deleted"
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Alert) int { return cmp.Or(b.RaisedAt.Compare(a.RaisedAt), cmp.Compare(a.ID, b.ID)) })
	return out[:min(len(out), MaxListed)], nil
}
