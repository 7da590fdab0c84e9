import {
  Body,
  Controller,
  Inject,
  Injectable,
  Module,
  type OnApplicationShutdown,
  Post,
  UseInterceptors,
} from "@nestjs/common";
import { currentRun, denied, Keybrake, type Run } from "keybrake";
import { createStripe } from "keybrake/stripe";
import { CurrentRun, RunInterceptor } from "./run.ts";

/** What became of one refund. */
interface Said {
  charge: string;
  refund?: string;
  code?: string;
  words?: string;
}

@Controller("chats/:chat")
@UseInterceptors(RunInterceptor)
export class ChatsController {
  /** The agent: it refunds what it was asked to, one after the other, until it is refused. */
  @Post("refunds")
  async refunds(@CurrentRun() run: Run, @Body("charges") charges: string[]): Promise<Said[]> {
    const stripe = createStripe(run);
    const said: Said[] = [];
    for (const charge of charges) {
      if (run.signal.aborted) break;
      try {
        const { id } = await stripe.refunds.create({ charge });
        said.push({ charge, refund: id });
      } catch (error) {
        const refusal = denied(error);
        if (!refusal) throw error;
        said.push({ charge, code: refusal.code, words: refusal.forModel() });
        break;
      }
    }
    return said;
  }

  /** Code that was given no run knows it too. */
  @Post("whoami")
  whoami(): { run: string | null } {
    return { run: currentRun().id };
  }
}

/** Writes down what is still lazy when the server ends. */
@Injectable()
class Closing implements OnApplicationShutdown {
  constructor(@Inject(Keybrake) private readonly keybrake: Keybrake) {}

  async onApplicationShutdown(): Promise<void> {
    await this.keybrake.close();
  }
}

@Module({
  controllers: [ChatsController],
  // The ledger and Stripe's secret come from the environment: KEYBRAKE_LEDGER, STRIPE_SECRET_KEY.
  providers: [{ provide: Keybrake, useFactory: () => new Keybrake() }, Closing, RunInterceptor],
})
export class AppModule {}
