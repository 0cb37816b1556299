package adminapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// Limits of operators' tokens.
const (
	DefaultOperatorTTL = 90 * 24 * time.Hour
	MaxOperatorTTL     = 366 * 24 * time.Hour
	MaxTokens          = 1000 // of a zone
)

type token struct {
	model.Operator
	kv group.KV
}

func tokensOf(snap group.Snapshot) (out []token, err error) {
	for kv := range snap.List(model.PrefixOperator) {
		op, err := model.Decode[model.Operator](model.PrefixOperator+"…", kv.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, token{op, kv})
	}
	slices.SortFunc(out, func(a, b token) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.CreatedAt.Compare(b.CreatedAt)) })
	return out, nil
}

func (t token) show() *adminv1.Operator {
	out := &adminv1.Operator{Name: t.Name, Role: t.Role, CreatedBy: t.CreatedBy, TokenId: strings.TrimPrefix(t.kv.Key, model.PrefixOperator)[:12]}
	if !t.CreatedAt.IsZero() {
		out.CreatedAt = timestamppb.New(t.CreatedAt)
	}
	if !t.Expires.IsZero() {
		out.ExpiresAt = timestamppb.New(t.Expires)
	}
	return out
}

// ListOperators lists tokens, of which one operator may have several.
func (s *server) ListOperators(ctx context.Context, _ *adminv1.ListOperatorsRequest) (*adminv1.ListOperatorsResponse, error) {
	all, err := tokensOf(s.freshOrLocal(ctx, s.Store))
	if err != nil {
		return nil, err
	}
	out := &adminv1.ListOperatorsResponse{}
	for _, t := range all {
		out.Operators = append(out.Operators, t.show())
	}
	return out, nil
}

// CreateOperator makes a token. An operator has one role: another token of the same name with another role replaces all.
func (s *server) CreateOperator(ctx context.Context, req *adminv1.CreateOperatorRequest) (*adminv1.CreateOperatorResponse, error) {
	ttl, err := duration(req.GetTtl(), "ttl")
	if err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = DefaultOperatorTTL
	}
	if ttl < 0 || ttl > MaxOperatorTTL {
		return nil, fault.New(fault.Invalid, "TTL_INVALID", "a token lasts at most %d days", int(MaxOperatorTTL.Hours()/24)).At("ttl")
	}
	now := time.Now().UTC().Truncate(time.Second)
	op := model.Operator{Name: req.GetName(), Role: req.GetRole(), Expires: now.Add(ttl), CreatedAt: now, CreatedBy: operator(ctx)}
	text := "bwo_" + s.Zone + "_" + rand.Text() + rand.Text()
	key := TokenKey(text)
	if h := req.GetTokenSha256(); h != "" { // one token in several zones: the caller has it already
		key, text = model.PrefixOperator+h, ""
	}
	err = s.changeTokens(ctx, "create-operator", func(all []token) ([]group.Op, error) {
		if len(all) >= MaxTokens {
			return nil, fault.New(fault.Conflict, "TOKENS_FULL", "zone %s has %d tokens of operators: remove some first", s.Zone, len(all))
		}
		ops := []group.Op{{Key: key, Value: model.Encode(op)}}
		for _, t := range all {
			switch {
			case t.kv.Key == key:
				return nil, fault.New(fault.Conflict, "TOKEN_TAKEN", "zone %s knows this token already, of operator %s", s.Zone, t.Name).At("token_sha256")
			case t.Name != op.Name:
			case req.GetReplace():
				ops = append(ops, group.Op{Key: t.kv.Key, Delete: true})
			case t.Role != op.Role:
				return nil, fault.New(fault.Conflict, "ROLE_DIFFERS", "operator %s is %s: with replace he becomes %s and his other tokens end", op.Name, t.Role, op.Role).At("role")
			}
		}
		return ops, nil
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateOperatorResponse{Token: text, Operator: token{op, group.KV{Key: key}}.show()}, nil
}

// RemoveOperator is in force on this node when it answers, and on others when they have applied it.
func (s *server) RemoveOperator(ctx context.Context, req *adminv1.RemoveOperatorRequest) (*adminv1.RemoveOperatorResponse, error) {
	return &adminv1.RemoveOperatorResponse{}, s.changeTokens(ctx, "remove-operator", func(all []token) (ops []group.Op, err error) {
		for _, t := range all {
			if t.Name == req.GetName() {
				ops = append(ops, group.Op{Key: t.kv.Key, Delete: true})
			}
		}
		if len(ops) == 0 {
			return nil, fault.New(fault.NotFound, "OPERATOR_NOT_FOUND", "zone %s has no operator %q", s.Zone, req.GetName())
		}
		return ops, nil
	})
}

// changeTokens commits a change of tokens after which somebody can still change them.
func (s *server) changeTokens(ctx context.Context, call string, change func([]token) ([]group.Op, error)) error {
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return err
		}
		all, err := tokensOf(snap)
		if err != nil {
			return err
		}
		ops, err := change(all)
		if err != nil {
			return err
		}
		admins := func(all []token) int {
			return len(slices.DeleteFunc(slices.Clone(all), func(t token) bool {
				return t.Role != RoleAdmin || !t.Expires.IsZero() && !time.Now().Before(t.Expires)
			}))
		}
		left := slices.DeleteFunc(slices.Clone(all), func(t token) bool {
			return slices.ContainsFunc(ops, func(op group.Op) bool { return op.Delete && op.Key == t.kv.Key })
		})
		for _, op := range ops {
			if !op.Delete {
				made, err := model.Decode[model.Operator](op.Key, op.Value)
				if err != nil {
					return fmt.Errorf("read the token just made: %w", err)
				}
				left = append(left, token{made, group.KV{Key: op.Key}})
			}
		}
		if admins(left) == 0 {
			return fault.New(fault.Conflict, "LAST_ADMIN", "zone %s would have no admin left: make another first", s.Zone)
		}
		ops, compares := fenced(state{snap: snap}, ops, nil)
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID(call, ""), Ops: ops, Compares: compares})
		if err != nil || res.Succeeded {
			return err
		}
	}
	return outran()
}
